"""Training: a configuration in, a record out; several at once if you like; two side by side to see how far apart they are.

A run of a regime and a run of its counterpart differ in two things only, the table of learning rates and the weight decay.
Everything random is a function of the seed, so runs of the same seed are paired: the same initial weights, batches and crops.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from explr.checks import FloatArray
from explr.errors import ExplrError
from explr.experiments.arms import Arm, CapturedArm
from explr.experiments.data import Choices, Dataset, cifar10, epoch_choices
from explr.experiments.files import atomic_write
from explr.experiments.progress import progress
from explr.experiments.records import Run, RunConfig, provenance
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
        device: where to train; by default a GPU if there is one. There the whole step is one CUDA graph (but in float64).
        checkpoint: a file that holds the state after the last whole epoch. A run that finds it goes on from there, on a CPU to
            the same bits. It stays; delete it when the record is safe.

    Raises:
        ExplrError: for a configuration that cannot run, a network that is not scale-invariant in a regime without weight
            decay, a checkpoint of another run, or when a loss or a weight is not finite (the message says when).

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
    """Train several networks at once; on a GPU side by side, each on a stream of its own, elsewhere in turn.

    Args:
        configs: what to run, all for the same number of epochs.
        data: as for :func:`train`.
        device: as for :func:`train`.
        checkpoints: one file for each configuration, as for :func:`train`.
        compiled: on a GPU, compile the network with torch.compile before its step is captured.

    Raises:
        ExplrError: as for :func:`train`; and if the configurations are of different lengths.
    """
    if len({config.epochs for config in configs}) != 1:
        raise ExplrError(f"runs of {[config.epochs for config in configs]} epochs cannot be trained together.")
    if checkpoints and len(checkpoints) != len(configs):
        raise ExplrError(f"{len(checkpoints)} checkpoints for {len(configs)} runs: give one each, or none.")
    device = pick_device(device)
    data = (data or cifar10()).to(device)
    epochs = configs[0].epochs
    steps_per_epoch = [-(-len(data.train_labels) // config.batch_size) for config in configs]
    arms = [
        CapturedArm(config, data, epochs * steps, compiled=compiled)
        if device.type == "cuda" and config.precision != "float64"
        else Arm(config, data, epochs * steps)
        for config, steps in zip(configs, steps_per_epoch, strict=True)
    ]
    for arm in arms:
        if arm.config.regime != "weight_decay" or arm.config.weight_scale != 1.0:
            _check_invariant(arm)
    files = [Path(path) for path in checkpoints or []]
    states = [_Progress({}, {name: [] for name in arm.trainable}) for arm in arms]
    for index, file in enumerate(files):
        if file.exists():
            states[index] = _resume(file, arms[index])
    done = [state.epoch * steps for state, steps in zip(states, steps_per_epoch, strict=True)]
    with progress(total=epochs * sum(steps_per_epoch), initial=sum(done), unit="step") as bar:
        for epoch in range(epochs):
            start = time.perf_counter()
            due = [(index, arm) for index, arm in enumerate(arms) if states[index].epoch == epoch]
            for _, arm in due:
                arm.run_epoch(epoch, after_step=bar.update)
            for index, arm in due:
                states[index].add(*arm.epoch_results(epoch))
            for index, arm in due:
                states[index].seconds += (time.perf_counter() - start) / len(due)
                if files:
                    _save(files[index], arm, states[index])
    return [
        Run(config, state.history, state.weight_norms, provenance(data, device, state.seconds, together=len(configs)))
        for config, state in zip(configs, states, strict=True)
    ]


def pick_device(device: str | torch.device | None) -> torch.device:
    """Return the device that is meant, by default a GPU if there is one.

    Raises:
        ExplrError: if torch knows no such device here.
    """
    try:
        picked = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=picked)
        return picked
    except (RuntimeError, AssertionError) as error:
        raise ExplrError(f"device={str(device)!r} cannot be used here ({str(error).splitlines()[0]}): use 'cpu'.") from error


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


def _save(path: Path, arm: Arm, progress: _Progress) -> None:
    content = {
        "run": _identity(arm),
        "progress": dataclasses.asdict(dataclasses.replace(progress, exponent=arm.exponent)),
        "model": arm.model.state_dict(),
        "momentum": arm.momentum(),
    }
    with atomic_write(path) as temporary:
        torch.save(content, temporary)


def _resume(path: Path, arm: Arm) -> _Progress:
    try:
        content = torch.load(path, weights_only=True, map_location=arm.device)
        run = content["run"]
    except Exception as error:  # torch.load has no exception of its own: a damaged file gives any of a dozen
        raise ExplrError(f"{path} is not a checkpoint ({error}): delete it to start again.") from error
    if not _is_run_of(run, arm):
        raise ExplrError(f"{path} is a checkpoint of another run, {run}: delete it to start again.")
    arm.model.load_state_dict(content["model"])
    arm.load_momentum(content["momentum"])
    progress = _Progress(**content["progress"])
    arm.exponent = progress.exponent
    return progress


def _identity(arm: Arm) -> list[str]:
    return [arm.data.name, json.dumps(dataclasses.asdict(arm.config))]


def _is_run_of(identity: Sequence[str], arm: Arm) -> bool:
    """Compare configurations, not texts: a checkpoint stays good when RunConfig gets a field with a default."""
    try:
        name, config = identity
        return (name, RunConfig(**json.loads(config))) == (arm.data.name, arm.config)
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
