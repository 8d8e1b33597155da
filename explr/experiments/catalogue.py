"""One named experiment for each figure of the book: a declared list of runs, and where their records lie.

An experiment is a function of the length of a run, so that it can be made in miniature: milestones move with it. The record of
a run lies at ``<results>/<experiment>/<arm>-seed<k>.json``. Miniatures, and runs on other images than CIFAR-10, have folders of
their own and never take the place of full runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from explr.checks import whole
from explr.equivalence import weight_decay_for
from explr.errors import ExplrError
from explr.experiments.arms import DivergedError
from explr.experiments.data import WHOLE, Dataset
from explr.experiments.files import Lock, release, try_lock
from explr.experiments.records import PACKAGE, Regime, Run, RunConfig, same_run
from explr.experiments.training import pick_device, train_together

EPOCHS = 200
STEPS_PER_EPOCH = 391  # 50,000 images in batches of 128
SHORT_EPOCHS = EPOCHS // 10  # the full network and all images, for a machine without a GPU
MINIATURE_EPOCHS = 16
Arms = dict[str, RunConfig]


@dataclass(frozen=True)
class Experiment:
    """A comparison.

    Attributes:
        shows: what it shows.
        arms: its arms, given epochs and steps per epoch.
        seeds: how many seeds the book uses.
        optional: arms without which the others are a comparison all the same.
        same: arm -> experiment and arm of which it is the same run, so that one record serves both.
    """

    shows: str
    arms: Callable[[int, int], Arms]
    seeds: int
    optional: frozenset[str] = frozenset()
    same: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def _twins(name: str, config: RunConfig, regime: Regime = "exponential") -> Arms:
    """Return a run with weight decay and its counterpart without."""
    return {f"{name}-decay": config, f"{name}-{regime}": replace(config, regime=regime)}


def step_decay(epochs: int, steps_per_epoch: int) -> RunConfig:
    """Return the source's baseline: 0.1, divided by 10 after 40 % and 60 % of the run (epochs 80 and 120 of 200)."""
    milestones = [round(0.4 * epochs) * steps_per_epoch, round(0.6 * epochs) * steps_per_epoch]
    return RunConfig(epochs=epochs, schedule="step_decay", schedule_args={"lr": 0.1, "milestones": milestones})


def _figure5(epochs: int, steps_per_epoch: int) -> Arms:
    decay = step_decay(epochs, steps_per_epoch)
    return {
        "decay": decay,
        "decay-one-ulp": replace(decay, one_ulp=True),
        "texp": replace(decay, regime="texp"),
        "exponential": replace(decay, regime="exponential"),
        "decay-rescaled": replace(decay, weight_scale=3.0),  # rounded differently at every step, as the twins are
    }


def _figure2(epochs: int, steps_per_epoch: int) -> Arms:
    return _twins("constant", RunConfig(epochs=epochs))


def _schedules(epochs: int, steps_per_epoch: int) -> Arms:
    steps = epochs * steps_per_epoch
    cosine = RunConfig(epochs=epochs, schedule="cosine", schedule_args={"lr": 0.1, "period": steps})
    args = {"lr_min": 0.001, "lr_max": 0.1, "half_period": max(steps // 8, 1)}
    return _twins("cosine", cosine) | _twins("triangular", replace(cosine, schedule="triangular", schedule_args=args))


def _normalizations(epochs: int, steps_per_epoch: int) -> Arms:
    decay = step_decay(epochs, steps_per_epoch)
    arms: Arms = {}
    for norm in ("group", "layer", "instance"):
        arms |= _twins(norm, replace(decay, model_args={"norm": norm}), "texp")
    return arms


def _head(epochs: int, steps_per_epoch: int) -> Arms:
    decay = step_decay(epochs, steps_per_epoch)
    return {"frozen": decay, "trained": replace(decay, model_args={"frozen_head": False})}


def _nesterov(epochs: int, steps_per_epoch: int) -> Arms:
    return _twins("nesterov", replace(step_decay(epochs, steps_per_epoch), optimizer="nesterov"))


def _adamw(epochs: int, steps_per_epoch: int) -> Arms:
    args = {"lr": 2e-3, "period": epochs * steps_per_epoch}
    return _twins("adamw", RunConfig(epochs=epochs, schedule="cosine", schedule_args=args, optimizer="adamw", weight_decay=0.5))


def _growth(epochs: int, steps_per_epoch: int) -> Arms:
    plain = RunConfig(epochs=epochs, weight_decay=0.0)
    arms = {"no-growth": plain}
    for growth in (1.1, 1.25, 1.481, 2.0, 4.0):
        weight_decay = weight_decay_for(growth ** (1 / steps_per_epoch), lr=0.1, momentum=plain.momentum)
        arms[f"growth-{growth:g}"] = replace(plain, regime="exponential", weight_decay=weight_decay)
    return arms


EXPERIMENTS = {
    "figure5": Experiment(
        "step decay against TEXP and the exact counterpart (Figure 5)", _figure5, 5, frozenset({"decay-rescaled"})
    ),
    "figure2": Experiment("fixed learning rate against ExpLR (Figure 2)", _figure2, seeds=3),
    "schedules": Experiment("cosine and triangular schedules, each against its exponential twin", _schedules, seeds=1),
    "normalizations": Experiment("group, layer and instance norm: step decay against TEXP", _normalizations, seeds=1),
    "head": Experiment(
        "frozen against trained last layer (Hoffer, Hubara and Soudry 2018)", _head, 3, same={"frozen": ("figure5", "decay")}
    ),
    "nesterov": Experiment("step decay with Nesterov momentum against its twin", _nesterov, seeds=2),
    "adamw": Experiment("AdamW on a cosine schedule against its twin", _adamw, seeds=2),
    "growth": Experiment("how fast may the learning rate grow, and what does growth buy", _growth, seeds=1),
}


def results_folder() -> Path:
    """Return where records lie: ``book/results`` of a checkout; elsewhere the copy that was installed with explr."""
    checkout = PACKAGE.parent / "book" / "results"
    return checkout if checkout.is_dir() else PACKAGE / "results"


def run_names(name: str, *, seeds: int | None = None) -> list[tuple[str, int]]:
    """Return (arm, seed) of every run of an experiment, seed by seed, so that whole comparisons are finished first.

    Raises:
        ExplrError: for an unknown experiment, or a number of seeds outside of 1 to 10,000.
    """
    experiment = _experiment(name)
    arms = experiment.arms(EPOCHS, STEPS_PER_EPOCH)
    count = experiment.seeds if seeds is None else whole("seeds", seeds, of="seeds", most=10_000)
    return [(arm, seed) for seed in range(count) for arm in arms]


def record_folder(
    name: str,
    *,
    epochs: int = EPOCHS,
    small: bool = False,
    precision: str = "float32",
    stand_in: bool = False,
    results: Path | None = None,
) -> Path:
    """Return where the records of an experiment lie: everything but the defaults is in the folder's name.

    Raises:
        ExplrError: for a number of epochs outside of 1 to 1,000,000.

    >>> record_folder("figure5", epochs=20, precision="bfloat16").name
    'figure5-20-epochs-bfloat16'
    """
    whole("epochs", epochs, of="epochs", most=1_000_000)
    parts = [name] + [f"{epochs}-epochs"] * (epochs != EPOCHS) + ["small"] * small
    parts += [precision] * (precision != "float32") + ["stand-in"] * stand_in
    return (results or results_folder()) / "-".join(parts)


def record_path(folder: Path, arm: str, seed: int) -> Path:
    """Return where the record of a run lies."""
    return folder / f"{arm}-seed{seed}.json"


def is_stand_in(data: Dataset) -> bool:
    """Return whether images are others than all of CIFAR-10's, so that their records have a folder of their own."""
    return data.name not in WHOLE


def load(
    name: str,
    *,
    epochs: int = EPOCHS,
    small: bool = False,
    precision: str = "float32",
    stand_in: bool = False,
    results: Path | None = None,
) -> dict[str, list[Run]]:
    """Return the records of an experiment that exist: arm -> runs, one a seed. Empty if none has been made yet.

    >>> load("figure5", epochs=7)
    {}
    """
    folder = record_folder(name, epochs=epochs, small=small, precision=precision, stand_in=stand_in, results=results)
    runs: dict[str, list[Run]] = {}
    for arm in _experiment(name).arms(EPOCHS, STEPS_PER_EPOCH):
        for path in sorted(folder.glob(f"{arm}-seed*.json")):
            runs.setdefault(arm, []).append(Run.load(path))
    return runs


def best_records(name: str, *others: str, results: Path | None = None) -> tuple[dict[str, list[Run]], str]:
    """Return the best records of an experiment that exist, and what they are in words; of several, those that all of them have.

    Full scale comes first, then one tenth of the length (20 epochs), then the miniature. Of records of one length, in several
    precisions, those with most seeds are taken. Records count once there is a seed of which every arm has one, optional arms
    apart. Then all do that can be paired by seed with one of the first arm; an arm may have fewer seeds than another, and the
    words say so. The dictionary is empty if there are none; the words then say how to make them.

    Args:
        name: a key of EXPERIMENTS.
        others: further ones, whose arms are to be compared with those of the first: the dictionary has them all.
        results: folder of the records.

    Raises:
        ExplrError: for an unknown experiment, or a record that is damaged.
    """
    names = (name, *others)
    needed = [arm for e in map(_experiment, names) for arm in e.arms(EPOCHS, STEPS_PER_EPOCH) if arm not in e.optional]
    for scale, epochs, small, precisions in _TIERS:
        found = dict[str, dict[str, list[Run]]]()
        for precision in precisions:
            sides = [load(name, epochs=epochs, small=small, precision=precision, results=results) for name in names]
            found[precision] = _comparable({arm: runs for side in sides for arm, runs in side.items()}, needed)
        precision, runs = max(found.items(), key=lambda item: min(len(item[1].get(arm, ())) for arm in needed))
        if runs:
            every = [run for side in runs.values() for run in side]
            first, seeds = every[0], max(map(len, runs.values()))
            size = {k: v for k, v in first.config.model_args.items() if all(r.config.model_args.get(k) == v for r in every)}
            data, devices = (", ".join(sorted({r.provenance[key] for r in every})) for key in ("data", "device"))
            length = f"{first.config.epochs} epochs, {precision}, {_seeds(runs)}"
            words = f"{first.config.model}{size or ''}, {length}, {data}, {devices}"
            again = " and ".join(f"`{_command(name, epochs, small, precision, seeds)}`" for name in names)
            return runs, f"{scale}: {words}; made by {again}"
    full, short, miniature = (
        " and ".join(f"`{_command(name, epochs, small)}`" for name in names) for _, epochs, small, _ in _TIERS
    )
    return {}, f"no record yet; {full} makes it on a GPU, {short} a tenth of the length, {miniature} a miniature"


_PRECISIONS = ("float32", "tf32", "bfloat16")
_TIERS: tuple[tuple[str, int, bool, tuple[str, ...]], ...] = (
    ("full scale", EPOCHS, False, _PRECISIONS),
    ("one tenth of the length, full scale is missing", SHORT_EPOCHS, False, _PRECISIONS),
    ("a miniature, full scale is missing", MINIATURE_EPOCHS, True, ("float32",)),
)


def _command(name: str, epochs: int, small: bool, precision: str = "float32", seeds: int | None = None) -> str:
    words = ["explr run", name] + [f"--epochs {epochs}"] * (epochs != EPOCHS) + ["--small"] * small
    words += [f"--precision {precision}"] * (precision != "float32")
    return " ".join(words + [f"--seeds {seeds}"] * (seeds not in (None, _experiment(name).seeds)))


def run_experiment(
    name: str,
    data: Dataset,
    *,
    seeds: int | None = None,
    epochs: int = EPOCHS,
    small: bool = False,
    precision: str = "float32",
    device: str | torch.device | None = None,
    together: int | None = None,
    results: Path | None = None,
    only: Collection[tuple[str, int]] | None = None,
) -> Iterator[tuple[str, int, Run]]:
    """Train the runs of an experiment that have no record yet; yield (arm, seed, run) of every one as it is there.

    Several processes may work on the same experiment: a run that another one is making is left to it. The frozen head is step
    decay of Figure 5; where that has a record, it is taken. A run that diverges leaves no record, and does not stop the others.

    Args:
        name: a key of EXPERIMENTS.
        data: the images.
        seeds: how many seeds, from 0; by default as many as the book uses.
        epochs: length of a run; other than 200 makes a miniature of its own.
        small: a smaller network on fewer of the images, for a CPU.
        precision: as in :class:`~explr.experiments.records.RunConfig`; other than "float32" makes records of their own.
        device: where to train; by default a GPU if there is one.
        together: how many runs share the device; by default 4 on a GPU and 1 on a CPU.
        results: folder of the records.
        only: (arm, seed) of the runs to look after, by default all of the experiment.

    Raises:
        ExplrError: for an unknown experiment, a number below 1, or a record at the place of this one that is of another
            configuration or data; at the end, if runs have diverged.
    """
    experiment, names = _experiment(name), run_names(name, seeds=seeds)
    device = pick_device(device)
    together = (4 if device.type == "cuda" else 1) if together is None else whole("together", together, of="runs")
    stand_in = is_stand_in(data)
    if small:
        data = data.subset(min(10_000, len(data.train_labels)), min(2_000, len(data.test_labels)))
    steps_per_epoch = -(-len(data.train_labels) // RunConfig().batch_size)
    folder = partial(record_folder, epochs=epochs, small=small, precision=precision, stand_in=stand_in, results=results)
    arms = _sized(experiment.arms(epochs, steps_per_epoch), small, precision)
    waiting: list[_Waiting] = []
    diverged: list[str] = []
    try:
        for arm, seed in names:
            if only is not None and (arm, seed) not in only:
                continue
            path, config = record_path(folder(name), arm, seed), replace(arms[arm], seed=seed)
            lock = None if path.exists() else try_lock(path.with_suffix(".lock"))
            if path.exists():  # it may have been finished between the two looks
                if lock:
                    release(lock)
                run = _load_same(path, config, data)
                _clear(path)
                yield arm, seed, run
                continue
            if lock is None:
                print(f"{path.stem} is being made by another process, and left to it.", file=sys.stderr)
                continue
            waiting.append(_Waiting(arm, seed, config, path, lock))
            other, twin = experiment.same.get(arm, (name, arm))
            elsewhere = record_path(folder(other), twin, seed)
            if elsewhere.exists() and _is(run := Run.load(elsewhere), config, data):
                run.save(path)
                release(waiting.pop().lock)
                print(f"{path.stem} is the run {elsewhere.parent.name}/{elsewhere.stem}: its record is taken.", file=sys.stderr)
                yield arm, seed, run
            elif len(waiting) == together:
                batch, waiting = waiting, []
                yield from _make(batch, data, device, diverged)
        batch, waiting = waiting, []
        yield from _make(batch, data, device, diverged)
    finally:
        for one in waiting:  # an error, or nobody asks for more: others may make these
            release(one.lock)
    if diverged:
        raise DivergedError("\n".join(diverged))


@dataclass(frozen=True)
class _Waiting:
    """A run to be made, and the lock that tells other processes that it is."""

    arm: str
    seed: int
    config: RunConfig
    path: Path
    lock: Lock


def _make(waiting: list[_Waiting], data: Dataset, device: torch.device, diverged: list[str]) -> Iterator[tuple[str, int, Run]]:
    if not waiting:
        return
    checkpoints = [one.path.with_suffix(".checkpoint") for one in waiting]
    try:
        try:
            runs: Sequence[Run | DivergedError] = train_together(
                [one.config for one in waiting], data, device=device, checkpoints=checkpoints
            )
        except DivergedError as error:
            runs = error.runs
        for one, run, checkpoint in zip(waiting, runs, checkpoints, strict=True):
            if isinstance(run, DivergedError):
                diverged.append(f"{one.path.parent.name} {one.arm} seed {one.seed}: {run}")
                continue
            run.save(one.path)
            checkpoint.unlink(missing_ok=True)
            yield one.arm, one.seed, run
    finally:
        for one in waiting:
            release(one.lock)


def _clear(path: Path) -> None:
    """Delete what a process has left beside a record that was killed just after it had written it."""
    left = [path.with_suffix(suffix) for suffix in (".checkpoint", ".lock")]
    if any(file.exists() for file in left) and (lock := try_lock(path.with_suffix(".lock"))):
        left[0].unlink(missing_ok=True)
        release(lock)


def _sized(arms: Arms, small: bool, precision: str) -> Arms:
    """Return arms at a precision, and with the network of a miniature if it is to be one."""
    arms = {arm: replace(config, precision=precision) for arm, config in arms.items()}
    if not small:
        return arms
    network = {"depth": 14, "width": 8}
    return {arm: replace(c, model="preresnet", model_args={**network, **c.model_args}) for arm, c in arms.items()}


def _is(run: Run, config: RunConfig, data: Dataset) -> bool:
    return same_run(run.config, config) and run.provenance["data"] == data.name


def _load_same(path: Path, config: RunConfig, data: Dataset) -> Run:
    run = Run.load(path)
    if not _is(run, config, data):
        raise ExplrError(f"{path} is the record of another run, on {run.provenance['data']}: move it away to make this one.")
    return run


def _comparable(runs: dict[str, list[Run]], needed: Sequence[str]) -> dict[str, list[Run]]:
    """Return the runs that can be paired with one of the first arm; none if no seed has all the arms that are needed."""
    seeds = {arm: {run.config.seed for run in side} for arm, side in runs.items()}
    if not (seeds.keys() >= set(needed) and set.intersection(*(seeds[arm] for arm in needed))):
        return {}
    paired = {seed for arm in seeds if arm != needed[0] for seed in seeds[arm] & seeds[needed[0]]}
    kept = {arm: [run for run in side if run.config.seed in paired] for arm, side in runs.items()}
    return {arm: side for arm, side in kept.items() if side}


def _seeds(runs: dict[str, list[Run]]) -> str:
    """Return of how many seeds records are, and which arms have fewer.

    >>> run = Run(RunConfig(), {}, {}, {})
    >>> _seeds({"decay": [run, run], "texp": [run, run]}), _seeds({"decay": [run, run], "texp": [run]})
    ('2 seeds', '2 seeds (1 of texp)')
    """
    counts = {arm: len(side) for arm, side in runs.items()}
    most = max(counts.values())
    fewer = [f"{count} of {arm}" for arm, count in counts.items() if count < most]
    return f"{most} seed{'s' * (most > 1)}" + f" ({', '.join(fewer)})" * bool(fewer)


def _experiment(name: str) -> Experiment:
    if name not in EXPERIMENTS:
        raise ExplrError(f"experiment {name!r} is unknown: use {', '.join(EXPERIMENTS)}.")
    return EXPERIMENTS[name]
