"""Training: a configuration in, a record out; several at once if you like; two side by side to see how far apart they are.

A run of a regime and a run of its counterpart differ in two things only, the table of learning rates and the weight decay.
Everything random is a function of the seed, so runs of the same seed are paired: the same initial weights, batches and crops.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from explr.checks import FloatArray
from explr.errors import ExplrError
from explr.experiments.arms import Arm, DivergedError, side_by_side
from explr.experiments.captured import CaptureError, make_arm
from explr.experiments.data import Choices, Dataset, cifar10, epoch_choices
from explr.experiments.files import atomic_write, sealed, unsealed
from explr.experiments.progress import progress
from explr.experiments.records import HISTORY, Run, RunConfig, check_series, device_name, provenance, same_run
from explr.invariance import scale_invariance


def train(
    config: RunConfig,
    data: Dataset | None = None,
    *,
    device: str | torch.device | None = None,
    checkpoint: str | Path | None = None,
) -> Run:
    """Train one network as ``config`` says and return the record. TQDM_DISABLE=1 in the environment hides the progress bar.

    Args:
        config: what to run.
        data: the images; CIFAR-10 by default (:func:`~explr.experiments.data.cifar10`).
        device: where to train; by default a GPU if there is one. There the whole step is one CUDA graph (but in float64, or
            with EXPLR_EAGER=1 in the environment), or, after a warning, goes without one where it cannot be captured.
        checkpoint: a file that holds the state after the last whole epoch. A run that finds it goes on from there, on a CPU to
            the same bits. It stays; delete it when the record is safe.

    Raises:
        ExplrError: for a configuration that cannot run, a network that is not scale-invariant in a regime without weight
            decay, a checkpoint of another run, a device that does not work or has too little memory, or when a loss or a
            weight is not finite (the message says when).

    >>> from explr.experiments.data import synthetic
    >>> small = dict(model="preresnet", model_args={"depth": 8, "width": 4}, epochs=1, batch_size=16)
    >>> run = train(RunConfig(**small), synthetic(train=64, test=32), device="cpu")
    >>> sorted(run.history)
    ['log_lr', 'test_accuracy', 'test_loss', 'train_accuracy', 'train_loss']
    """
    (run,) = train_together([config], data, device=device, checkpoints=[checkpoint] if checkpoint else None)
    return run


def train_together(
    configs: Sequence[RunConfig],
    data: Dataset | None = None,
    *,
    device: str | torch.device | None = None,
    checkpoints: Sequence[str | Path] | None = None,
    compiled: bool = False,
) -> list[Run]:
    """Train several networks at once, a step of each in turn; on a GPU side by side, each on a stream of its own.

    A run that diverges does not stop the others.

    Args:
        configs: what to run, all for the same number of epochs.
        data: as for :func:`train`.
        device: as for :func:`train`.
        checkpoints: one file for each configuration, as for :func:`train`.
        compiled: on a GPU, compile the network with torch.compile before its step is captured.

    Raises:
        ExplrError: as for :func:`train`; and if the configurations are of different lengths. If runs have diverged it is a
            :class:`~explr.experiments.arms.DivergedError`, raised when the others are finished; its ``runs`` has their records.
    """
    if len({config.epochs for config in configs}) != 1:
        raise ExplrError(f"runs of {[config.epochs for config in configs]} epochs cannot be trained together.")
    if checkpoints and len(checkpoints) != len(configs):
        raise ExplrError(f"{len(checkpoints)} checkpoints for {len(configs)} runs: give one each, or none.")
    device = pick_device(device)
    arms: list[Arm] = []
    with _orderly_end(arms, device, len(configs)):
        data = (data or cifar10()).to(device)
        _check_classes(data)
        arms += _make_arms(configs, data, compiled)
        return _train(arms, [Path(path) for path in checkpoints or []])


def _train(arms: Sequence[Arm], files: Sequence[Path]) -> list[Run]:
    for arm in arms:
        if arm.config.regime != "weight_decay" or arm.config.weight_scale != 1.0:
            _check_invariant(arm)
    states = [_Progress({}, {name: [] for name in arm.trainable}) for arm in arms]
    for index, file in enumerate(files):
        if file.exists():
            states[index] = _resume(file, arms[index])
    done = [state.epoch * arm.steps_per_epoch for state, arm in zip(states, arms, strict=True)]
    epochs, diverged = arms[0].config.epochs, dict[int, DivergedError]()
    with progress(total=epochs * sum(arm.steps_per_epoch for arm in arms), initial=sum(done), unit="step") as bar:
        for epoch in range(epochs):
            start = time.perf_counter()
            due = [index for index, state in enumerate(states) if state.epoch == epoch]  # a run that diverged stays behind
            for taken in side_by_side([arms[index] for index in due], epoch):
                bar.update(taken)
            for index in due:
                try:
                    states[index].add(*arms[index].epoch_results(epoch))
                except DivergedError as error:
                    diverged[index] = error.with_traceback(None)  # which would keep the arm's memory
            for index in due:
                if index not in diverged:
                    states[index].seconds += (time.perf_counter() - start) / len(due)
                    if files:
                        _save(files[index], arms[index], states[index])
    runs = [diverged.get(index) or _record(arm, states[index], len(arms)) for index, arm in enumerate(arms)]
    if diverged:
        which = [f"run {index + 1} of {len(arms)}: " * (len(arms) > 1) + str(diverged[index]) for index in sorted(diverged)]
        raise DivergedError("\n".join(which), runs)
    return [run for run in runs if isinstance(run, Run)]


def _make_arms(configs: Sequence[RunConfig], data: Dataset, compiled: bool) -> list[Arm]:
    """Return an arm for each configuration, all of one kind: one that is captured and one that is not would round apart."""
    steps = [config.epochs * -(-len(data.train_labels) // config.batch_size) for config in configs]
    try:
        return [make_arm(config, data, count, compiled=compiled) for config, count in zip(configs, steps, strict=True)]
    except CaptureError as error:
        instead = "a graph that is not compiled" if compiled else "no graph, which EXPLR_EAGER=1 chooses at once"
        warnings.warn(f"{error}: going on with {instead}. The functions are the same.", RuntimeWarning, stacklevel=3)
    if compiled:
        return _make_arms(configs, data, compiled=False)
    return [Arm(config, data, count) for config, count in zip(configs, steps, strict=True)]


@contextmanager
def _orderly_end(arms: Sequence[Arm], device: torch.device, together: int) -> Iterator[None]:
    """If the block is left early, wait for the arms: what is then freed is what their streams may still be using."""
    try:
        yield
    except BaseException as error:
        with suppress(RuntimeError):  # a device that is lost says so again
            for arm in arms:
                arm.wait()
        if isinstance(error, torch.cuda.OutOfMemoryError):
            less = f"fewer than {together} together (explr run --together)" if together > 1 else "a smaller batch or network"
            raise ExplrError(f"out of memory on {device_name(device)}: use {less}. torch says: {error}") from error
        raise


def _record(arm: Arm, state: _Progress, together: int) -> Run:
    origin = provenance(arm.data, arm.device, state.seconds, together=together, graph=arm.graph)
    return Run(arm.config, state.history, state.weight_norms, origin)


def pick_device(device: str | torch.device | None) -> torch.device:
    """Return the device that is meant, by default a GPU if there is one, after a convolution has run on it.

    Raises:
        ExplrError: if torch knows no such device here, or has no kernels for it.

    >>> pick_device("cpu")
    device(type='cpu')
    """
    try:
        picked = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        ones = torch.ones(1, 1, 3, 3, device=picked)
        float(F.conv2d(ones, ones))  # a GPU that this torch was not built for can be named, and even hold a tensor
        return picked
    except (RuntimeError, AssertionError) as error:
        raise ExplrError(f"device={str(device)!r} cannot be used here ({str(error).splitlines()[0]}): use 'cpu'.") from error


def _check_classes(data: Dataset) -> None:
    least, classes = int(data.train_labels.min()), int(data.train_labels.max()) + 1
    if least < 0 or int(data.test_labels.min()) < 0 or int(data.test_labels.max()) >= classes:
        raise ExplrError(
            f"the training labels of {data.name} go from {least} to {classes - 1}, its test labels from "
            f"{int(data.test_labels.min())} to {int(data.test_labels.max())}: a network knows the classes from 0 to "
            "the last that it is trained on."
        )


def _check_invariant(arm: Arm) -> None:
    """Refuse a network whose weight decay no learning rate can replace: the run would be another one, and nobody would see."""
    images = arm.data.normalize(arm.data.train_images[:2], arm.dtype)
    report = scale_invariance(arm.model, images)
    if not report.invariant:
        reasons = "; ".join(map(str, report.obstructions))
        raise ExplrError(
            f"{arm.config.model}{arm.config.model_args} is not scale-invariant, so regime={arm.config.regime!r} would not "
            f"compute the functions of the run with weight decay: {reasons}"
        )


@dataclass
class _Progress:
    """How far a run has come, and what it has given so far."""

    history: dict[str, list[float]]
    weight_norms: dict[str, list[float]]
    epoch: int = 0
    exponent: int = 0
    seconds: float = 0.0

    def add(self, row: dict[str, float], norms: dict[str, float]) -> None:
        for name, value in row.items():
            self.history.setdefault(name, []).append(value)
        for name, norm in norms.items():
            self.weight_norms[name].append(norm)
        self.epoch += 1

    def check(self, arm: Arm) -> None:
        """Refuse what no run of this arm can have come to.

        Raises:
            ValueError: naming what is wrong.
        """
        if type(self.epoch) is not int or not 1 <= self.epoch <= arm.config.epochs or type(self.exponent) is not int:
            raise ValueError(f"epoch {self.epoch!r} of {arm.config.epochs}, exponent {self.exponent!r}")
        check_series("history", self.history, HISTORY, self.epoch)
        check_series("weight_norms", self.weight_norms, arm.trainable, self.epoch)


def _save(path: Path, arm: Arm, progress: _Progress) -> None:
    content = {
        "run": _identity(arm),
        "progress": dataclasses.asdict(dataclasses.replace(progress, exponent=arm.exponent)),
        "model": arm.model.state_dict(),
        "buffers": arm.buffers(),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_write(path) as file:
        file.write(sealed(buffer.getvalue()))


def _resume(path: Path, arm: Arm) -> _Progress:
    try:
        content = torch.load(io.BytesIO(unsealed(path.read_bytes())), weights_only=True, map_location=arm.device)
        if not _is_run_of(content["run"], arm):
            raise ExplrError(f"{path} is a checkpoint of another run, {content['run']}: delete it to start again.")
        progress = _Progress(**content["progress"])
        progress.check(arm)
        # Checkpoints that were made before there were other optimizers have momentum alone.
        buffers = content["buffers"] if "buffers" in content else {"momentum_buffer": content["momentum"]}
        arm.model.load_state_dict(content["model"])
        arm.load_buffers(buffers)
    except (ExplrError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # torch.load has no exception of its own: a damaged file gives any of a dozen
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ExplrError(f"{path} is not a checkpoint, or a damaged one ({reason}): delete it to start again.") from error
    arm.exponent = progress.exponent
    return progress


def _identity(arm: Arm) -> list[str]:
    return [arm.data.name, json.dumps(dataclasses.asdict(arm.config))]


def _is_run_of(identity: Sequence[str], arm: Arm) -> bool:
    """Compare configurations, not texts: a checkpoint stays good when RunConfig gets a field with a default."""
    try:
        name, config = identity
        return name == arm.data.name and same_run(RunConfig(**json.loads(config)), arm.config)
    except (TypeError, ValueError):  # not a pair, not JSON, no configuration of this version, or one that it refuses
        return False


@dataclass(frozen=True, eq=False)
class Comparison:
    """How far two runs are apart at each step, shape ``(steps,)`` each.

    Attributes:
        logit_error: largest difference between the logits of the two networks on the step's batch, before the step, relative
            to the largest logit.
        weight_error: largest distance over all tensors between the weights of the two after the step, each divided by the
            growth that its schedule predicts, relative to the norm of the tensor.
        log_weight_ratio: natural log of the ratio of the norms of all weights after the step, second run to first.
        log_scale: what that logarithm should be: log P of the second schedule less that of the first.
    """

    logit_error: FloatArray
    weight_error: FloatArray
    log_weight_ratio: FloatArray
    log_scale: FloatArray


def compare(
    first: RunConfig,
    second: RunConfig,
    data: Dataset,
    *,
    steps: int,
    device: str | torch.device = "cpu",
) -> Comparison:
    """Train two networks side by side on the batches of ``first.seed`` and measure how far apart they are at every step.

    Args:
        first: the one side, as a rule with weight decay.
        second: the other side, as a rule the same with ``regime="exponential"``.
        data: the images.
        steps: how many steps; epochs follow one another as in :func:`train`.
        device: where to train.

    >>> from explr.experiments.data import synthetic
    >>> tiny = {"depth": 8, "width": 4, "eps": 1e-30}
    >>> decay = RunConfig(model="preresnet", model_args=tiny, precision="float64", batch_size=8)
    >>> exponential = dataclasses.replace(decay, regime="exponential")
    >>> result = compare(decay, exponential, synthetic(train=32, test=10), steps=6)
    >>> bool(result.logit_error.max() < 1e-11)
    True
    """
    data = data.to(device)
    arms = [Arm(config, data, steps) for config in (first, second)]
    growth = [arm.learning_rates.log_scale + math.log(arm.config.weight_scale) for arm in arms]
    rows = []
    for step, batch in zip(progress(range(steps)), _batches(first, data), strict=False):
        logits = [arm.step(step, batch)[1] for arm in arms]
        weights = [
            [p.detach().double() / float(np.exp(scale[step + 1])) for p in arm.trainable.values()]
            for arm, scale in zip(arms, growth, strict=True)
        ]
        norms = [torch.stack([w.norm() for w in side]) for side in weights]
        distance = torch.stack([(a - b).norm() for a, b in zip(*weights, strict=True)])
        ratio = (norms[1].norm() / norms[0].norm()).log()
        error = (logits[0] - logits[1]).abs().max() / logits[0].abs().max()
        rows.append(torch.stack([error.double(), (distance / norms[0]).max(), ratio]).tolist())
    logit_error, weight_error, log_ratio = np.array(rows).T
    log_scale = (growth[1] - growth[0])[1:]
    return Comparison(logit_error, weight_error, log_ratio + log_scale, log_scale)


def _batches(config: RunConfig, data: Dataset) -> Iterator[Choices]:
    for epoch in itertools.count():
        yield from (
            epoch_choices(len(data.train_labels), config.seed, epoch).to(data.train_labels.device).batches(config.batch_size)
        )
