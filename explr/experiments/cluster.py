"""Runs of an experiment as jobs, of Slurm or of this machine, handed over by submitit; their records come to the same folder.

A job is nothing but :func:`~explr.experiments.catalogue.run_experiment` for a few runs, in another process. It goes on from
the checkpoints that lie beside the records, so that one that is preempted, or out of time, is queued again and loses less than
an epoch. The folder of the records must be one that every machine sees, in a file system whose locks hold between them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from explr.errors import ExplrError, needs
from explr.experiments import data
from explr.experiments.catalogue import is_stand_in, record_folder, record_path, results_folder, run_experiment, run_names
from explr.experiments.data import Dataset
from explr.experiments.records import Run

if TYPE_CHECKING:
    import submitit

JOBS = ".jobs"  # in the folder of all results: what submitit needs of jobs, and their logs
PAUSE = {"slurm": 15.0, "local": 0.5}  # seconds between two looks at the jobs; squeue is to be asked seldom
_PATIENCE = 40  # looks until it counts as silent
_TIMEOUTS = 100  # how often a job that is out of time is queued again


@dataclass(frozen=True)
class Request:
    """What is asked of jobs.

    Attributes:
        executor: "slurm", or "local" for processes of this machine.
        partition: of Slurm; by default the cluster's own choice.
        gpus: of each job, 0 or 1; by default 1 on Slurm, and here if there is one.
        hours: after which a job is out of time and is queued again; more than an epoch takes.
        jobs: how many may run at the same time; by default as many as Slurm gives, 1 here.
    """

    executor: Literal["slurm", "local"]
    partition: str | None = None
    gpus: int | None = None
    hours: float = 4.0
    jobs: int | None = None

    def __post_init__(self) -> None:
        """Refuse what no job can be asked for, and settle the number of GPUs.

        Raises:
            ExplrError: for a value outside its range.

        >>> Request("local", partition="big")
        Traceback (most recent call last):
        explr.errors.ExplrError: partition='big' is Slurm's, not executor='local': leave one of them out.
        """
        if self.gpus is None:
            object.__setattr__(self, "gpus", int(self.executor == "slurm" or torch.cuda.is_available()))
        if self.gpus not in (0, 1):
            raise ExplrError(f"gpus={self.gpus} must be 0 or 1: it is of each job, and a job trains on one device.")
        if not 1 / 60 <= self.hours <= 10_000 or (self.jobs is not None and not 1 <= self.jobs <= 10_000):
            raise ExplrError(f"hours={self.hours} must lie between 1/60 and 10,000, jobs={self.jobs} between 1 and 10,000.")
        if self.partition is not None and self.executor == "local":
            raise ExplrError(f"partition={self.partition!r} is Slurm's, not executor='local': leave one of them out.")


@dataclass(frozen=True)
class Piece:
    """What a job does: it makes a few runs of an experiment.

    Attributes:
        name: the experiment.
        runs: (arm, seed) of each.
        folder: where to look for the images, as the user said it.
        images: name of the data set that is meant.
        options: what else ``run_experiment`` is called with.
        command: the command that the records name as theirs.
        visible: the GPUs that it may see; None for those that it is given.
    """

    name: str
    runs: tuple[tuple[str, int], ...]
    folder: str | None
    images: str
    options: dict[str, Any]
    command: tuple[str, ...]
    visible: str | None

    def __call__(self) -> None:
        """Make the runs that have no record; the records are all that is left of it."""
        sys.argv = list(self.command)
        if self.visible is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.visible
        images = data.find(self.folder)
        if images.name != self.images:
            raise ExplrError(f"the job found {images.name}, not {self.images}: name a folder that all machines see.")
        for _ in run_experiment(self.name, images, **self.options, together=len(self.runs), only=self.runs):
            pass

    def checkpoint(self) -> Any:
        """Return what submitit queues again when this job is preempted or out of time: the same, for runs keep checkpoints."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def run_on(
    request: Request, names: Sequence[str], folder: str | None = None, *, results: Path | None = None, **options: Any
) -> Iterator[tuple[str, str, int, Run]]:
    """Send the runs that have no record out as jobs; yield (experiment, arm, seed, run) of every one as it is there.

    On Slurm the jobs are one array, and go on if this process ends, which only waits for them. The jobs of "local" are
    processes of this machine, and end with this one. When all runs have their records nothing is left of the jobs; otherwise
    their logs lie in ``.jobs`` beside the experiments' folders.

    Args:
        request: what the jobs are to be.
        names: keys of EXPERIMENTS.
        folder: the images, as :func:`~explr.experiments.data.find` takes it.
        results: folder of the records.
        options: as :func:`~explr.experiments.catalogue.run_experiment` takes them; ``together`` run in one job, by default 4
            where it has a GPU.

    Raises:
        ExplrError: if submitit is missing, for what ``run_experiment`` refuses, if Slurm cannot be asked or takes no such jobs;
            at the end, if a run has no record, with the last line of its job's log.
    """
    with needs("cluster"):
        import submitit  # noqa: F401  # said before the images are read
    images = data.find(folder)
    results = (results or results_folder()).resolve()  # a job may start elsewhere
    together = options.pop("together", None)
    together = (4 if request.gpus else 1) if together is None else together
    device = options.pop("device", None) or ("cuda" if request.gpus else "cpu")
    pieces: list[Piece] = []
    for name in names:
        missing = []
        for arm, seed in run_names(name, seeds=options.get("seeds")):
            made = _path(name, arm, seed, images, results, options).exists()
            there = [(arm, seed)] * made
            for found in run_experiment(name, images, **options, results=results, together=together, device="cpu", only=there):
                yield name, *found
            missing += [(arm, seed)] * (not made)
        pieces += [
            Piece(
                name,
                runs=tuple(missing[i : i + together]),
                folder=folder,
                images=images.name,
                options={**options, "results": results, "device": device},
                command=tuple(sys.argv),
                visible=os.environ.get("CUDA_VISIBLE_DEVICES", "0") if request.executor == "local" and request.gpus else None,
            )
            for i in range(0, len(missing), together)
        ]
    if not pieces:
        return
    (results / JOBS).mkdir(parents=True, exist_ok=True)
    logs = Path(tempfile.mkdtemp(dir=results / JOBS))  # for this user alone: submitit's files are pickles
    lost: list[str] = []
    for piece, job in _finished(request, _submitter(request, logs), pieces):
        for arm, seed in piece.runs:
            path = _path(piece.name, arm, seed, images, results, options)
            if path.exists():
                for found in run_experiment(piece.name, images, **options, results=results, device="cpu", only=[(arm, seed)]):
                    yield piece.name, *found
            else:
                lost.append(f"{path.parent.name} {arm} seed {seed} has no record: {_last_words(job)}")
    if lost:
        raise ExplrError("\n".join([*lost, f"The logs are in {logs}. The same command goes on from the last whole epochs."]))
    _delete(logs)


def _path(name: str, arm: str, seed: int, images: Dataset, results: Path, options: dict[str, Any]) -> Path:
    scale = {key: value for key, value in options.items() if key in ("epochs", "small", "precision")}
    return record_path(record_folder(name, **scale, stand_in=is_stand_in(images), results=results), arm, seed)


def _submitter(request: Request, logs: Path) -> submitit.Executor:
    import submitit

    minutes = max(1, round(60 * request.hours))
    if request.executor == "local":
        local = submitit.LocalExecutor(logs, max_num_timeout=_TIMEOUTS)
        local.update_parameters(timeout_min=minutes)
        return local
    try:
        slurm = submitit.SlurmExecutor(logs, max_num_timeout=_TIMEOUTS)
    except RuntimeError as error:  # there is no srun
        _delete(logs)
        raise ExplrError(f"--executor slurm cannot be used here ({error}): log in where jobs are sent from.") from error
    more: dict[str, Any] = {"partition": request.partition} if request.partition else {}
    if request.gpus:
        more["gpus_per_node"] = request.gpus
    slurm.update_parameters(
        job_name="explr",
        time=minutes,
        array_parallelism=request.jobs or 10_000,
        additional_parameters={"requeue": True},
        **more,
    )
    return slurm


def _finished(
    request: Request, submitter: submitit.Executor, pieces: Sequence[Piece]
) -> Iterator[tuple[Piece, submitit.Job[None]]]:
    """Send the pieces out; yield each with its job when that has ended, well or not."""
    from submitit.core.utils import FailedJobError

    waiting, running = deque(pieces), dict[str, tuple[Piece, Any]]()
    try:
        while waiting or running:
            room = (request.jobs or 1) - len(running) if request.executor == "local" else len(waiting)  # Slurm has a queue
            if batch := [waiting.popleft() for _ in range(min(room, len(waiting)))]:
                try:
                    with submitter.batch():
                        jobs = [submitter.submit(piece) for piece in batch]
                except FailedJobError as error:
                    _delete(submitter.folder)
                    raise ExplrError(f"Slurm takes no such jobs: {error}") from error
                running |= {job.job_id: (piece, job) for piece, job in zip(batch, jobs, strict=True)}
                _tell(request.executor, jobs)
            time.sleep(PAUSE[request.executor])
            for name in running.keys() - _in_queue(request.executor, [job for _, job in running.values()]):
                yield running.pop(name)
    finally:
        if request.executor == "local":
            for _, job in running.values():
                job.cancel()


def _tell(executor: str, jobs: Sequence[submitit.Job[None]]) -> None:
    if executor == "slurm":
        name = jobs[0].job_id.partition("_")[0]
        print(
            f"{len(jobs)} job{'s' * (len(jobs) > 1)} with Slurm as {name} (scancel {name} takes them back); "
            "they go on if you stop this command, which only waits for them.",
            file=sys.stderr,
        )


def _in_queue(executor: str, jobs: Sequence[submitit.Job[None]]) -> set[str]:
    """Return the names of those jobs that have not ended, run or wait; squeue needs no accounting, as sacct does."""
    if executor == "local":
        return {job.job_id for job in jobs if not job.done()}
    for _ in range(_PATIENCE):
        asked = subprocess.run(["squeue", "--me", "--array", "--noheader", "--format=%i"], capture_output=True, text=True)
        if asked.returncode == 0:
            return set(asked.stdout.split())
        time.sleep(PAUSE[executor])
    raise ExplrError(f"squeue does not answer ({asked.stderr.strip()}): the jobs go on; the same command finds their records.")


def _last_words(job: submitit.Job[None]) -> str:
    """Return the last line of a job's log that is its own."""
    log = job.paths.stderr
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []
    own = [line for line in lines if not line.startswith(("srun: ", "submitit "))]
    last = (own or lines or ["its job has ended without a word"])[-1]
    return re.sub(r"^explr\.[\w.]+Error: ", "", last)  # ours say all in their words


def _delete(logs: Path) -> None:
    shutil.rmtree(logs)
    with suppress(OSError):  # the logs of another call
        logs.parent.rmdir()
