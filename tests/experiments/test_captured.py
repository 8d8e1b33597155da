"""The captured step, on an emulation of CUDA graphs: it computes what the eager step computes, and ends well when it must."""

import dataclasses
import itertools
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from graph_on_cpu import Graph, HostRead, OneDevice, install

from explr import ExplrError, RunConfig, train
from explr.experiments import captured as captured_module
from explr.experiments import training
from explr.experiments.arms import Arm, DivergedError
from explr.experiments.captured import IN_FLIGHT, CapturedArm, make_arm
from explr.experiments.data import Choices, Dataset, synthetic
from explr.experiments.training import train_together

TINY = RunConfig(
    schedule="step_decay",
    schedule_args={"lr": 0.1, "milestones": [8]},
    weight_decay=5e-3,
    epochs=2,
    batch_size=16,
    model="preresnet",
    model_args={"depth": 8, "width": 4, "eps": 1e-30},
)
EXPONENTIAL = dataclasses.replace(TINY, regime="exponential")
THREE = [TINY, dataclasses.replace(EXPONENTIAL, seed=1), dataclasses.replace(TINY, batch_size=24)]


@pytest.fixture(scope="module")
def data():
    return synthetic(train=88, test=40)  # 88 = 5 * 16 + 8: the last batch is smaller


@pytest.fixture
def gpu(monkeypatch):
    """Captures work, and arms are captured, though everything lies on the CPU."""
    device = install(monkeypatch)
    monkeypatch.setattr(training, "make_arm", CapturedArm)
    return device


def eager_arm(config, data, steps, compiled=False):
    return Arm(config, data, steps)


# ---- it computes what the eager step computes


@pytest.fixture
def rounded_alike(monkeypatch):
    """Let the eager arm round as the captured one does, in its rates and its SGD: training would amplify the difference."""
    rates, optimizer = Arm._rates, Arm._make_optimizer
    monkeypatch.setattr(Arm, "_make_optimizer", lambda self, lr=1.0, fused=True: optimizer(self, lr, fused))
    monkeypatch.setattr(Arm, "_rates", lambda self, steps: rates(self, steps).astype(np.float32).astype(np.float64))


def everything(arm, epoch):
    """Return all that an epoch gives and leaves behind, as one array."""
    row, norms = arm.epoch_results(epoch)
    state = [value.double().norm().item() for value in arm.model.state_dict().values()]
    return np.array(
        [
            *arm.losses.tolist(),
            *row.values(),
            *norms.values(),
            *state,
            *(b.norm() for b in arm.buffers().get("momentum_buffer", {}).values()),
        ]
    )


STRONG = {"weight_decay": 4.0, "momentum": 0.0, "schedule": "constant", "schedule_args": {"lr": 0.1}}  # 16 times an epoch


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"regime": "exponential"},
        {"regime": "exponential", **STRONG},
        {"augment": False},
        {"weight_scale": 3.0},
        {"model_args": {"depth": 8, "width": 4, "eps": 1e-30, "norm": "group"}},
        {"model": "densenet", "model_args": {"depth": 7, "growth": 4}},
    ],
    ids=["decay", "exponential", "renormalised", "plain", "scaled", "group", "densenet"],
)
def test_replayed_steps_compute_what_eager_steps_compute(data, gpu, rounded_alike, change):
    config = dataclasses.replace(TINY, **change)
    eager, captured = Arm(config, data, 12), CapturedArm(config, data, 12)
    for name, value in eager.model.state_dict().items():
        assert torch.equal(value, captured.model.state_dict()[name]), f"the capture has changed {name}"
    assert not any(buffer.any() for buffer in captured.buffers().get("momentum_buffer", {}).values())
    for epoch in range(2):
        sides = []
        for arm in (eager, captured):
            arm.run_epoch(epoch)
            sides.append(everything(arm, epoch))
        np.testing.assert_allclose(sides[1], sides[0], rtol=1e-5, atol=1e-7)
    assert {size: graph.replays for size, graph in captured._graphs.items()} == {16: 10, 8: 2}


def baked_rate(self, lr=1.0, fused=True):
    return Arm._make_optimizer(self, 0.05, fused)


def device_step(rows=None, advance=1):
    def step(self, size):
        here = self._index * self.config.batch_size + torch.arange(size) if rows is None else rows
        self._lr.copy_(self._epoch_rates.index_select(0, self._index)[0])
        loss, logits, labels = self._step(self._choices[here])
        self.losses.index_copy_(0, self._index, loss.double()[None])
        self._right += (logits.argmax(1) == labels).sum()
        self._index += advance

    return step


@pytest.mark.parametrize(
    "where, name, wrong",
    [
        (CapturedArm, "_make_optimizer", baked_rate),
        (CapturedArm, "_device_step", device_step(rows=slice(0, 8))),
        (CapturedArm, "_device_step", device_step(advance=0)),
        (Choices, "copy_", lambda self, other: self.__dict__.update(vars(other))),
    ],
    ids=["baked rate", "baked batch", "counter stands still", "choices replaced"],
)
def test_that_comparison_catches(data, gpu, rounded_alike, monkeypatch, where, name, wrong):
    monkeypatch.setattr(where, name, wrong)
    sides = []
    for arm in (Arm(TINY, data, 12), CapturedArm(TINY, data, 12)):
        for epoch in range(2):
            arm.run_epoch(epoch)
        sides.append(everything(arm, 1))
    assert not np.allclose(sides[1], sides[0], rtol=1e-4, atol=1e-7)


def test_captured_run_that_was_killed_resumes_to_the_same_bits(data, gpu, monkeypatch, tmp_path):
    config = dataclasses.replace(EXPONENTIAL, epochs=3)
    whole = train(config, data, device="cpu")
    replay, count = Graph.replay, itertools.count()

    def die(self):
        if next(count) == 15:  # in the middle of the last epoch
            raise KeyboardInterrupt
        replay(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Graph, "replay", die)
        train(config, data, device="cpu", checkpoint=tmp_path / "run.ckpt")
    assert gpu.in_flight() == 0, "buffers are freed that the device still uses"
    resumed = train(config, data, device="cpu", checkpoint=tmp_path / "run.ckpt")
    assert resumed.history == whole.history and resumed.weight_norms == whole.weight_norms


def test_checkpoints_are_the_same_with_and_without_a_graph(data, gpu, monkeypatch, tmp_path):
    captured = train(TINY, data, device="cpu", checkpoint=tmp_path / "graph.ckpt")
    monkeypatch.setattr(training, "make_arm", eager_arm)
    eager = train(TINY, data, device="cpu", checkpoint=tmp_path / "eager.ckpt")
    one, two = (torch.load(tmp_path / name, weights_only=True)["model"].keys() for name in ("graph.ckpt", "eager.ckpt"))
    assert one == two
    for name in ("graph.ckpt", "eager.ckpt"):  # and either arm goes on from either
        assert train(TINY, data, device="cpu", checkpoint=tmp_path / name).provenance["graph"] is False
    assert (captured.provenance["graph"], eager.provenance["graph"]) == (True, False)


def test_batches_are_counted_once_an_epoch_and_not_in_the_step(data, gpu):
    arm = CapturedArm(TINY, data, 12)
    counts = [value for name, value in arm.model.state_dict(keep_vars=True).items() if name.endswith("num_batches_tracked")]
    used = {id(tensor) for graph in arm._graphs.values() for _, args, *_ in graph.work for tensor in args}
    assert counts and not used & set(map(id, counts))
    arm.run_epoch(0)
    assert all(count == 6 for count in counts)


# ---- arms side by side


def test_captured_runs_together_are_the_runs_alone(data, gpu):
    for together, alone in zip(train_together(THREE, data, device="cpu"), THREE, strict=True):
        assert together.history == train(alone, data, device="cpu").history


def test_arms_take_turns_step_by_step(data, gpu):
    train_together([dataclasses.replace(TINY, seed=seed) for seed in range(3)], data, device="cpu")
    one, two, three = gpu.launches[:3]
    assert len({one, two, three}) == 3
    assert gpu.launches == [one, two, three] * 12


def test_few_launches_are_under_way_at_a_time(gpu):
    arm = CapturedArm(dataclasses.replace(TINY, batch_size=2), synthetic(train=88, test=40), 44)
    arm.run_epoch(0)
    assert gpu.most_in_flight == IN_FLIGHT + 1 < 44
    assert gpu.in_flight() == IN_FLIGHT


def diverge(monkeypatch, seed):
    """Let the weights of the arm of a seed be lost in its second epoch."""
    begin = Arm._begin

    def broken(self, epoch):
        begin(self, epoch)
        if epoch == 1 and self.config.seed == seed:
            self.trainable["stem.weight"].data.fill_(torch.nan)

    monkeypatch.setattr(Arm, "_begin", broken)


@pytest.mark.parametrize("kind", [CapturedArm, eager_arm], ids=["captured", "eager"])
def test_a_run_that_diverges_leaves_its_siblings_alone(data, gpu, monkeypatch, tmp_path, kind):
    monkeypatch.setattr(training, "make_arm", kind)
    configs = [dataclasses.replace(TINY, seed=seed, epochs=3) for seed in range(2)]
    alone = train(configs[1], data, device="cpu")
    diverge(monkeypatch, seed=0)
    files = [tmp_path / f"{seed}.ckpt" for seed in range(2)]
    with pytest.raises(DivergedError, match=r"^run 1 of 2: the loss of step 6 is nan") as caught:
        train_together(configs, data, device="cpu", checkpoints=files)
    lost, kept = caught.value.runs
    assert isinstance(lost, DivergedError) and kept.history == alone.history
    assert [torch.load(file, weights_only=True)["progress"]["epoch"] for file in files] == [1, 3]


# ---- what a capture cannot hold: the step on tensors that have no values to read


def on_meta(arm):
    """Move everything that the captured step reads to the meta device."""
    data, meta = arm.data, torch.device("meta")
    moved = Dataset(*(getattr(data, f).to(meta) for f in ("train_images", "train_labels", "test_images", "test_labels")), "")
    moved.__dict__["channel_statistics"] = tuple(value.to(meta) for value in data.channel_statistics)
    momentum = {name: buffer.to(meta) for name, buffer in arm.buffers().get("momentum_buffer", {}).items()}
    arm.model.to(meta)
    arm.trainable = {name: p for name, p in arm.model.named_parameters() if p.requires_grad}
    arm.data, arm.device, arm._choices = moved, meta, arm._choices.to(meta)
    arm.optimizer = arm._make_optimizer()  # which looks at the rate
    for name in ("_lr", "_index", "_epoch_rates", "losses", "_right"):
        setattr(arm, name, getattr(arm, name).to(meta))
    arm.optimizer.param_groups[0]["lr"] = arm._lr
    for name, buffer in momentum.items():
        arm.optimizer.state[arm.trainable[name]]["momentum_buffer"] = buffer
    arm.optimizer.zero_grad()
    return arm


@pytest.fixture
def meta_arm(data, gpu, monkeypatch):
    sgd = sys.modules["torch.optim.sgd"]  # what it asks, before it believes that meta tensors can be fused; one of the two
    monkeypatch.setattr(sgd, "_device_dtype_check_for_fused", lambda *args: None, raising=False)
    monkeypatch.setattr(sgd, "_get_fused_kernels_supported_devices", lambda: ["cpu", "meta"], raising=False)
    return lambda **change: on_meta(CapturedArm(dataclasses.replace(TINY, **change), data, 12))


WIDE = {"depth": 8, "width": 16}  # narrower ones in channels last can crash a processor (see explr.experiments.precision)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"augment": False},
        {"momentum": 0.0},
        {"model_args": WIDE | {"norm": "layer"}},
        {"model_args": WIDE | {"frozen_head": False}},
        {"model": "densenet", "model_args": {"depth": 7, "growth": 4}},
    ],
    ids=["decay", "plain", "momentum 0", "layer", "trained head", "densenet"],
)
def test_a_captured_step_never_touches_the_host(meta_arm, monkeypatch, change, layout):
    monkeypatch.setattr("explr.experiments.arms.layout", lambda *args: layout)
    arm = meta_arm(**{"model_args": WIDE} | change)
    for size in (16, 8):
        with OneDevice() as rules:
            arm._device_step(size)
        assert "aten._fused_sgd_.tensor_lr" in rules.seen
        arm.optimizer.zero_grad()


def rate_is_a_number(arm, monkeypatch):
    arm.optimizer.param_groups[0]["lr"] = 0.1


def a_number_is_read(arm, monkeypatch):
    right = CapturedArm._step
    monkeypatch.setattr(CapturedArm, "_step", lambda self, batch: (right(self, batch), float(self._right))[0])


def a_mask_picks(arm, monkeypatch):
    def train_batch(self, choices, dtype, *, augment=True):
        images = self.train_images[choices.index].to(dtype)
        images[choices.flip] = images[choices.flip].flip(-1)
        return images, self.train_labels[choices.index]

    monkeypatch.setattr(Dataset, "train_batch", train_batch)


def a_constant_is_copied(arm, monkeypatch):
    right = Dataset.normalize
    ones = lambda images: torch.tensor([1.0], device=images.device)  # noqa: E731
    monkeypatch.setattr(Dataset, "normalize", lambda self, images, dtype: right(self, images, dtype) * ones(images))


def rows_lie_on_the_host(arm, monkeypatch):
    pick = Choices.__getitem__
    monkeypatch.setattr(Choices, "__getitem__", lambda self, rows: pick(self, rows[torch.arange(len(rows))]))


def momentum_starts_in_the_capture(arm, monkeypatch):
    arm.optimizer.state.clear()


def gradients_lie_otherwise(arm, monkeypatch):
    for name, buffer in arm.buffers().get("momentum_buffer", {}).items():
        if buffer.ndim == 4:
            arm.optimizer.state[arm.trainable[name]]["momentum_buffer"] = buffer.contiguous()


@pytest.mark.parametrize(
    "defect",
    [
        rate_is_a_number,
        a_number_is_read,
        a_mask_picks,
        a_constant_is_copied,
        rows_lie_on_the_host,
        momentum_starts_in_the_capture,
        gradients_lie_otherwise,
    ],
)
def test_that_test_catches(meta_arm, monkeypatch, defect):
    arm = meta_arm(model_args=WIDE)
    defect(arm, monkeypatch)
    with pytest.raises((HostRead, RuntimeError)), OneDevice():
        arm._device_step(16)


# ---- where no graph can be had


def break_capture(monkeypatch, kind, message):
    """Let whatever is recorded fail, warm-up steps not."""
    step = CapturedArm._device_step

    def broken(self, size):
        step(self, size)
        if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
            raise kind(message)

    monkeypatch.setattr(CapturedArm, "_device_step", broken)


def test_a_capture_that_fails_is_told_once_and_the_run_goes_on_without(data, gpu, monkeypatch):
    break_capture(monkeypatch, RuntimeError, "operation not permitted when stream is capturing")
    with pytest.warns(RuntimeWarning) as caught:
        runs = train_together(THREE, data, device="cpu")
    (told,) = [str(w.message) for w in caught if w.category is RuntimeWarning]
    for part in (torch.__version__, "CPU", "not permitted when stream is capturing", "EXPLR_EAGER"):
        assert part in told
    assert gpu.current is gpu.default, "the stream of the capture is still current"
    assert [run.provenance["graph"] for run in runs] == [False] * 3
    monkeypatch.setattr(training, "make_arm", eager_arm)
    assert [run.history for run in runs] == [train(config, data, device="cpu").history for config in THREE]


def test_captures_tolerate_what_other_threads_do(data, gpu):
    CapturedArm(TINY, data, 12)
    assert gpu.options == [{"capture_error_mode": "thread_local"}] * 2


def test_without_a_compiler_the_graph_is_not_compiled(data, gpu, monkeypatch):
    def no_compiler(*args, **options):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.warns(RuntimeWarning, match="Failed to find C compiler.* not compiled"):
        (run,) = train_together([TINY], data, device="cpu", compiled=True)
    assert run.provenance["graph"] is True
    assert run.history == train(TINY, data, device="cpu").history


def out_of_memory(*args):
    raise torch.cuda.OutOfMemoryError("Tried to allocate 2 GiB")


@pytest.mark.parametrize("where", ["capture", "replay", "evaluation"])
def test_out_of_memory_is_one_error_that_says_what_to_do(data, gpu, monkeypatch, where):
    if where == "capture":
        break_capture(monkeypatch, torch.cuda.OutOfMemoryError, "Tried to allocate 2 GiB")
    else:
        monkeypatch.setattr(*{"replay": (Graph, "replay"), "evaluation": (Arm, "evaluate")}[where], out_of_memory)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is no capture that has failed
        with pytest.raises(ExplrError, match=r"fewer than 2 together \(explr run --together\).*Tried to allocate 2 GiB"):
            train_together([TINY, EXPONENTIAL], data, device="cpu")
        with pytest.raises(ExplrError, match="a smaller batch or network"):
            train(TINY, data, device="cpu")
    assert gpu.in_flight() == 0 and gpu.current is gpu.default


def test_the_graph_can_be_left_out(monkeypatch):
    monkeypatch.setattr(captured_module, "Arm", lambda *args: "eager")
    monkeypatch.setattr(captured_module, "CapturedArm", lambda *args, compiled: "captured")
    on = {kind: SimpleNamespace(train_labels=SimpleNamespace(device=torch.device(kind))) for kind in ("cpu", "cuda")}
    assert make_arm(TINY, on["cuda"], 1) == "captured"
    assert make_arm(TINY, on["cpu"], 1) == "eager"
    for other in ({"precision": "float64"}, {"optimizer": "nesterov"}, {"optimizer": "adamw"}):
        assert make_arm(dataclasses.replace(TINY, **other), on["cuda"], 1) == "eager"
    monkeypatch.setenv("EXPLR_EAGER", "1")
    assert make_arm(TINY, on["cuda"], 1) == "eager"
