"""Runs that go out as jobs come back as the records that one process makes: here, and under a real Slurm of one machine."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from explr import ExplrError, Run
from explr.__main__ import main
from explr.experiments.cluster import JOBS, Piece, Request, _last_words, run_on
from explr.experiments.data import synthetic
from tests import slurm

pytest.importorskip("submitit")

ROOT = Path(__file__).parents[2]
EPOCHS = 4

# Every process of these tests runs this behind explr.experiments.cluster (those of submitit alone start without torch):
# two tiny experiments, and a list of the epochs that were finished.
START = """
import importlib.util, sys

class After:
    def find_spec(self, name, path, target=None):
        if name != "explr.experiments.cluster":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def and_more(module):
            execute(module)
            import tiny_experiments

        spec.loader.exec_module = and_more
        return spec

sys.meta_path.insert(0, After())
"""
HOOK = """
import os, time
from dataclasses import replace
from explr import RunConfig
from explr.experiments import catalogue, cluster, data, training

def tiny(epochs, steps, **changes):
    size = {"depth": 8, "width": 4}
    decay = RunConfig(epochs=epochs, batch_size=20, model="preresnet", model_args=size, weight_decay=5e-2, **changes)
    return {"decay": decay, "exponential": replace(decay, regime="exponential")}

def wild(epochs, steps):
    return {"wild": replace(tiny(epochs, steps)["decay"], schedule_args={"lr": 1e30})}

def slow_save(path, arm, progress, save=training._save):
    save(path, arm, progress)
    with open(os.environ["EXPLR_EPOCHS"], "a") as file:
        file.write(f"{path.stem} {progress.epoch} {os.getpid()}\\n")
    time.sleep(float(os.environ.get("EXPLR_SLEEP", 0)))

training._save = slow_save
data.synthetic = lambda make=data.synthetic: make(40, 20)
catalogue.EXPERIMENTS |= {
    "tiny": catalogue.Experiment("to be sent out", tiny, seeds=1), "wild": catalogue.Experiment("diverges", wild, seeds=1)
}
cluster.PAUSE["slurm"] = 0.5
"""


class Place:
    """A folder of results, and the environment in which its commands run."""

    def __init__(self, folder, env=os.environ):
        self.folder, self.results = folder, folder / "results"
        (folder / "sitecustomize.py").write_text(START)
        (folder / "tiny_experiments.py").write_text(HOOK)
        paths = [str(folder), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        more = {"PYTHONPATH": os.pathsep.join(paths), "EXPLR_EPOCHS": str(folder / "epochs"), "OMP_NUM_THREADS": "1"}
        self.env = {**env, **more, "EXPLR_EAGER": "1"}

    def start(self, *options, name="tiny", sleep=0.0):
        scale = ["--epochs", str(EPOCHS), "--precision", "float64", "--data", "synthetic"]
        command = [sys.executable, "-m", "explr", "run", name, *scale, "--results", str(self.results), *options]
        env = {**self.env, "EXPLR_SLEEP": str(sleep)}
        heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which a shell has its background jobs ignore
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=ROOT, env=env, text=True, preexec_fn=heed, **pipes)

    def run(self, *options, **kwargs):
        process = self.start(*options, **kwargs)
        out, error = process.communicate(timeout=300)
        return process.returncode, out, error

    def epochs(self):
        """Return (run, epoch, process) of every epoch that was finished."""
        path = self.folder / "epochs"
        return [tuple(line.split()) for line in path.read_text().splitlines()] if path.exists() else []

    def training(self, process):
        """Wait until a run of a command has finished an epoch; return the process that makes it."""
        end = time.monotonic() + 200
        while not self.epochs():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end, "no job has started"
            time.sleep(0.05)
        return int(self.epochs()[0][2])

    def records(self):
        """Return what the records say but where and when they were made; nothing but records may be left."""
        files = [path for path in self.results.rglob("*") if path.is_file()]
        assert {path.suffix for path in files} == {".json"}, files
        runs = {path.stem: Run.load(path) for path in files}
        assert len({run.provenance["command"] for run in runs.values()}) == 1
        self.command = next(iter(runs.values())).provenance["command"]
        return {name: (run.config, run.history, run.weight_norms) for name, run in runs.items()}

    def went_on(self, interrupted=0):
        """Tell whether every epoch was made, and none twice; who is interrupted may have saved one and not yet listed it."""
        made = Counter((name, epoch) for name, epoch, _ in self.epochs())
        return len(made) >= 2 * EPOCHS - interrupted and set(made.values()) == {1}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Return the records of one process that nobody disturbed."""
    place = Place(tmp_path_factory.mktemp("plain"))
    assert place.run("--device", "cpu")[0] == 0
    records = place.records()
    assert sorted(records) == ["decay-seed0", "exponential-seed0"] and place.went_on()
    return records


@pytest.fixture(scope="module")
def cluster():
    """Start a Slurm; return the environment in which its commands find it."""
    if lacking := slurm.missing():
        pytest.skip(f"no Slurm here: {', '.join(lacking)} is missing (apt-get install slurmctld slurmd slurm-client munge)")
    with slurm.running() as env:
        yield env


LOCAL = ("--executor", "local", "--gpus", "0", "--jobs", "2")
SLURM = ("--executor", "slurm", "--gpus", "0", "--partition", "main")


# ---- processes of this machine


def test_jobs_give_the_records_of_one_process_and_leave_nothing_behind(plain, tmp_path):
    place = Place(tmp_path)
    status, out, _ = place.run(*LOCAL)
    assert status == 0 and out.count("test accuracy") == 2
    assert place.records() == plain
    assert place.command == f"explr run tiny --epochs {EPOCHS} --precision float64 --data synthetic"
    assert len({process for _, _, process in place.epochs()}) == 2  # each run was a job
    status, out, _ = place.run(*LOCAL)
    assert status == 0 and out.count("test accuracy") == 2 and place.went_on()  # nothing was made twice


def test_a_job_that_is_killed_is_named_and_goes_on_when_asked_again(plain, tmp_path):
    place = Place(tmp_path)
    process = place.start(*LOCAL, "--together", "2", sleep=1.0)
    os.kill(place.training(process), signal.SIGKILL)
    _, error = process.communicate(timeout=200)
    assert process.returncode == 2
    assert "tiny-4-epochs-float64-stand-in decay seed 0 has no record" in error and str(place.results / JOBS) in error
    assert "Traceback" not in error
    assert place.run(*LOCAL, "--together", "2")[0] == 0
    assert place.went_on(interrupted=1)
    for logs in (place.results / JOBS).iterdir():  # those of the killed job stay, to be read
        slurm.shutil.rmtree(logs)
    assert place.records() == plain


def test_a_job_that_is_out_of_time_is_queued_again(plain, tmp_path):
    place = Place(tmp_path)
    process = place.start(*LOCAL, sleep=2.0)
    pid = place.training(process)
    os.kill(pid, signal.SIGUSR2)  # what submitit and Slurm send before the time is up
    _, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    assert place.records() == plain and place.went_on(interrupted=1)
    assert len({process for _, _, process in place.epochs()}) == 3


def test_jobs_of_this_machine_end_with_the_command(tmp_path):
    place = Place(tmp_path)
    process = place.start(*LOCAL, sleep=2.0)
    pid = place.training(process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=200)
    assert process.returncode == 130 and "goes on from the last whole epoch" in error
    end = time.monotonic() + 20
    while _alive(pid):
        assert time.monotonic() < end, "the job goes on"
        time.sleep(0.1)


def _alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_run_that_diverges_in_a_job_is_named_with_the_reason(tmp_path):
    status, out, error = Place(tmp_path).run(*LOCAL, name="wild")
    assert (status, out) == (2, "")
    assert (
        "wild-4-epochs-float64-stand-in wild seed 0 has no record: " in error
        and ": the " in error
        and "diverged" in error
        and "DivergedError" not in error
    )


# ---- Slurm


@pytest.mark.slow
def test_slurm_gives_the_records_of_one_process_and_leaves_nothing_behind(plain, tmp_path, cluster):
    place = Place(tmp_path, cluster)
    status, out, error = place.run(*SLURM)
    assert status == 0 and out.count("test accuracy") == 2, error
    assert "2 jobs with Slurm as" in error
    assert place.records() == plain and place.went_on()


@pytest.mark.slow
def test_a_job_that_slurm_preempts_goes_on_from_its_last_whole_epoch(plain, tmp_path, cluster):
    """Slurm kills the job and queues it again, as for one of higher priority."""
    place = Place(tmp_path, cluster)
    process = place.start(*SLURM, "--jobs", "1", sleep=1.5)
    place.training(process)
    (job,) = _jobs(cluster, "RUNNING")
    subprocess.run(["scontrol", "requeue", job], env=cluster, check=True)
    _out_of_turn(cluster, job, process)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert place.records() == plain and place.went_on(interrupted=1)
    assert len({process for _, _, process in place.epochs()}) >= 2


@pytest.mark.slow
def test_a_job_of_slurm_that_is_out_of_time_is_queued_again(plain, tmp_path, cluster):
    place = Place(tmp_path, cluster)
    process = place.start(*SLURM, "--together", "2", sleep=1.5)  # one job, and so no array
    place.training(process)
    (job,) = _jobs(cluster, "RUNNING")
    subprocess.run(["scancel", "--signal=USR2", job], env=cluster, check=True)
    _out_of_turn(cluster, job, process)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert place.records() == plain
    assert place.went_on(interrupted=1) and len({process for _, _, process in place.epochs()}) == 2


@pytest.mark.slow
def test_a_job_that_slurm_loses_is_named(tmp_path, cluster):
    place = Place(tmp_path, cluster)
    process = place.start(*SLURM, "--together", "2", sleep=1.5)
    place.training(process)
    (job,) = _jobs(cluster, "RUNNING")
    subprocess.run(["scancel", job], env=cluster, check=True)
    _, error = process.communicate(timeout=200)
    assert process.returncode == 2
    assert "decay seed 0 has no record: " in error and "exponential seed 0 has no record: " in error
    assert "CANCELLED" in error, error


@pytest.mark.slow
def test_jobs_that_slurm_does_not_take_are_one_error(tmp_path, cluster):
    place = Place(tmp_path, cluster)
    status, _, error = place.run("--executor", "slurm", "--gpus", "0", "--partition", "nowhere")
    assert status == 2 and "explr: Slurm takes no such jobs" in error and "nvalid partition" in error
    assert "Traceback" not in error and not (place.results / JOBS).exists()


def _jobs(env, state):
    squeue = ["squeue", "--array", "--noheader", f"--states={state}", "--format=%i"]
    return subprocess.run(squeue, env=env, check=True, capture_output=True, text=True).stdout.split()


def _out_of_turn(env, job, process):
    """Let a job start at once that Slurm would make wait for two minutes after it was queued again."""
    end = time.monotonic() + 60
    while process.poll() is None and job not in _jobs(env, "PENDING"):
        assert time.monotonic() < end, "the job is not queued again"
        time.sleep(0.2)
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], env=env, check=True)


# ---- what can be said without a job


def test_a_job_that_finds_other_images_makes_no_record(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["explr"])
    piece = Piece("figure2", (("constant-decay", 0),), "synthetic", "CIFAR-10", {"results": tmp_path}, ("explr",), None)
    with pytest.raises(ExplrError, match=r"the job found synthetic gratings.*, not CIFAR-10"):
        piece()
    assert list(tmp_path.iterdir()) == []


def test_a_job_sees_the_gpus_that_the_command_saw(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["explr"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr("explr.experiments.cluster.run_experiment", lambda *_, **__: [])
    for visible, seen in ((None, "0"), ("3", "3")):
        Piece(
            "figure2",
            (("constant-decay", 0),),
            "synthetic",
            synthetic().name,
            {"results": tmp_path, "device": "cpu"},
            (),
            visible,
        )()
        assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


def test_without_submitit_the_error_says_what_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ExplrError, match=r"submitit is not installed: pip install '\.\[cluster\]'"):
        next(run_on(Request("local"), ["figure2"], "synthetic"))


def test_without_slurm_the_error_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    options = ["--epochs", "1", "--seeds", "1", "--data", "synthetic", "--results", str(tmp_path)]
    assert main(["run", "figure2", "--executor", "slurm", *options]) == 2
    error = capsys.readouterr().err
    assert "--executor slurm cannot be used here" in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "log, words",
    [
        (None, "its job has ended without a word"),
        ("\n", "its job has ended without a word"),
        ("first\nlast\n\nsrun: error: vm: task 0: Exited with exit code 1\n", "last"),
        ("explr.errors.ExplrError: the run has diverged\n", "the run has diverged"),
        ("explr.experiments.arms.DivergedError: the run has diverged\n", "the run has diverged"),
        ("MemoryError: no room\n", "MemoryError: no room"),
        ("srun: error: no node\n", "srun: error: no node"),
    ],
)
def test_the_last_words_of_a_job_are_its_own(log, words, tmp_path):
    if log:
        (tmp_path / "log").write_text(log)

    class Job:
        class paths:
            stderr = tmp_path / "log"

    assert _last_words(Job) == words
