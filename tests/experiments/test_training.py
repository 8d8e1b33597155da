import dataclasses
import json
import math
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from explr import ExplrError, Run, RunConfig, convert, train
from explr.experiments.arms import Arm
from explr.experiments.data import epoch_choices, synthetic
from explr.experiments.models import preresnet
from explr.experiments.records import device_name
from explr.experiments.training import compare, pick_device, train_together

TINY = RunConfig(
    schedule="step_decay",
    schedule_args={"lr": 0.1, "milestones": [8]},
    weight_decay=5e-3,
    epochs=2,
    batch_size=16,
    model="preresnet",
    model_args={"depth": 8, "width": 4, "eps": 1e-30},
    precision="float64",
)
# How far float32 runs that differ by rounding may be apart in their first and second epoch: training amplifies it. A learning
# rate that is wrong by 0.1 % gives 4e-3 in the second.
APART = (2e-4, 3e-3)


@pytest.fixture(scope="module")
def data():
    return synthetic(train=88, test=40)  # 88 = 5 * 16 + 8: the last batch is smaller


def test_weights_whose_norms_no_record_could_hold_are_refused_before_the_first_step(data):
    config = dataclasses.replace(TINY, regime="exponential", schedule="constant", schedule_args={"lr": 0.1}, weight_decay=2e-2)
    Arm(config, data, 20_000)
    with pytest.raises(ExplrError, match=r"from step \d+ of 50000 on .* weight_decay=0.02"):
        Arm(config, data, 50_000)


def test_loop_agrees_with_a_plain_independent_loop(data):
    run, arm = train(TINY, data, device="cpu"), Arm(TINY, data, 12)

    torch.manual_seed(0)
    net = preresnet(8, width=4, eps=1e-30).double()
    weights = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=5e-3)
    step, losses, right = 0, np.zeros((2, 6)), 0
    sizes = [16, 16, 16, 16, 16, 8]
    for epoch in range(2):
        net.train()
        arm.run_epoch(epoch)
        choices = epoch_choices(88, 0, epoch)
        for begin in range(0, 88, 16):
            optimizer.param_groups[0]["lr"] = 0.1 if step < 8 else 0.01
            rows = slice(begin, begin + 16)
            pick = type(choices)(choices.index[rows], choices.top[rows], choices.left[rows], choices.flip[rows])
            images, labels = data.train_batch(pick, torch.float64)
            loss = F.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[epoch, begin // 16] = loss.item()
            step += 1
        np.testing.assert_allclose(arm.losses, losses[epoch], rtol=1e-10)
        net.eval()
        logits = net(data.normalize(data.test_images, torch.float64))
        right = (logits.argmax(1) == data.test_labels).double().mean().item()
        assert run.history["train_loss"][epoch] == pytest.approx(losses[epoch] @ sizes / 88, rel=1e-10)
        assert run.history["test_loss"][epoch] == pytest.approx(F.cross_entropy(logits, data.test_labels).item(), rel=1e-10)
        assert run.history["test_accuracy"][epoch] == right
    assert step == 12
    norm = net.get_parameter("blocks.1.conv1.weight").norm().item()
    assert run.weight_norms["blocks.1.conv1.weight"][-1] == pytest.approx(norm, rel=1e-10)
    np.testing.assert_allclose(run.history["log_lr"], np.log([0.1, 0.01]), rtol=1e-12)


@pytest.mark.parametrize("regime", ["weight_decay", "exponential", "texp"])
def test_learning_rates_of_each_regime(regime):
    config = dataclasses.replace(TINY, regime=regime)
    schedule = config.learning_rates(12)
    lrs = np.repeat([0.1, 0.01], [8, 4])
    if regime == "weight_decay":
        np.testing.assert_allclose(schedule.lr, lrs, rtol=1e-15)
        assert not schedule.log_scale.any()
    else:
        exact = convert(lrs, 5e-3, 0.9)
        distance = np.abs(schedule.log_lr - exact.log_lr).max()
        assert distance == 0.0 if regime == "exponential" else 1e-3 < distance < 0.2
    assert Arm(config, synthetic(8, 8), 12).optimizer.param_groups[0]["weight_decay"] == (
        5e-3 if regime == "weight_decay" else 0.0
    )


def test_two_regimes_compute_the_same_functions_on_a_preresnet(data):
    result = compare(TINY, dataclasses.replace(TINY, regime="exponential"), data, steps=24)
    assert result.logit_error.max() < 1e-10
    assert result.weight_error.max() < 1e-10
    np.testing.assert_allclose(result.log_weight_ratio, result.log_scale, atol=1e-10)
    assert result.log_scale[-1] > 0.02  # the weights did grow


@pytest.mark.parametrize(
    "wrong",
    [{"regime": "texp"}, {"regime": "exponential", "weight_decay": 5.05e-3}, {"regime": "exponential", "momentum": 0.89}],
    ids=["no start-up", "one percent more decay", "another momentum"],
)
def test_that_comparison_catches_a_wrong_conversion(data, wrong):
    assert compare(TINY, dataclasses.replace(TINY, **wrong), data, steps=12).logit_error.max() > 1e-6


def test_arms_of_a_seed_start_alike_and_see_the_same_batches(data, monkeypatch):
    seen = {}
    step = Arm.step

    def watched(self, index, batch):
        seen.setdefault(self.config.regime, []).append((batch.index.tolist(), batch.top.tolist(), batch.flip.tolist()))
        return step(self, index, batch)

    monkeypatch.setattr(Arm, "step", watched)
    configs = [TINY, dataclasses.replace(TINY, regime="exponential")]
    arms = [Arm(config, data, 12) for config in configs]
    for one, two in zip(arms[0].trainable.values(), arms[1].trainable.values(), strict=True):
        assert torch.equal(one, two)
    for config in configs:
        train(config, data, device="cpu")
    assert seen["weight_decay"] == seen["exponential"] and len(seen["exponential"]) == 12


def test_training_learns(data):
    config = dataclasses.replace(TINY, epochs=12, precision="float32")
    run = train(config, synthetic(train=400, test=200), device="cpu")
    assert run.history["test_accuracy"][-1] > 0.1 + 5 * (0.1 * 0.9 / 200) ** 0.5  # out of the reach of chance


def test_global_random_state_is_left_alone(data):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    train(dataclasses.replace(TINY, epochs=1), data, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_one_ulp_moves_every_weight_by_one_unit_in_the_last_place():
    plain, moved = (Arm(dataclasses.replace(TINY, one_ulp=moved), synthetic(10, 10), 12) for moved in (False, True))
    for name, weight in plain.trainable.items():
        other = moved.trainable[name]
        assert torch.equal(torch.nextafter(weight, torch.tensor(math.inf, dtype=weight.dtype)), other)


@pytest.mark.parametrize("count, words", [(1, "1 thread"), (2, "2 threads")])
def test_a_record_counts_threads_in_english(monkeypatch, count, words):
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    assert device_name(torch.device("cpu")).partition(", ")[2] == words


def test_record_survives_saving(data, tmp_path):
    run = train(dataclasses.replace(TINY, epochs=1), data, device="cpu")
    run.save(tmp_path / "new" / "run.json")
    assert Run.load(tmp_path / "new" / "run.json") == run
    assert run.provenance["data"] == "synthetic gratings, 88 training and 40 test images"
    assert {"device", "torch", "python", "commit", "date", "seconds"} <= set(run.provenance)
    assert run.provenance["graph"] is False


def test_killed_run_resumes_to_the_same_bits(data, tmp_path, monkeypatch):
    config = dataclasses.replace(TINY, epochs=3, regime="exponential")
    whole = train(config, data, device="cpu")
    checkpoint = tmp_path / "run"  # a name needs no suffix
    step = Arm.step

    def die(self, index, batch):
        if index == 15:  # in the middle of the last epoch
            raise KeyboardInterrupt
        return step(self, index, batch)

    monkeypatch.setattr(Arm, "step", die)
    with pytest.raises(KeyboardInterrupt):
        train(config, data, device="cpu", checkpoint=checkpoint)
    monkeypatch.setattr(Arm, "step", step)
    resumed = train(config, data, device="cpu", checkpoint=checkpoint)
    assert resumed.history == whole.history and resumed.weight_norms == whole.weight_norms
    again = train(config, data, device="cpu", checkpoint=checkpoint)  # the checkpoint of a finished run is the finished run
    assert again.history == whole.history


def test_runs_trained_together_are_the_runs_trained_alone(data):
    configs = [TINY, dataclasses.replace(TINY, seed=1, regime="exponential")]
    for together, alone in zip(train_together(configs, data, device="cpu"), configs, strict=True):
        assert together.history == train(alone, data, device="cpu").history
    with pytest.raises(ExplrError, match="1 checkpoints for 2 runs"):
        train_together(configs, data, device="cpu", checkpoints=["one"])
    with pytest.raises(ExplrError, match=r"\[2, 3\] epochs"):
        train_together([TINY, dataclasses.replace(TINY, epochs=3)], data, device="cpu")


def test_bringing_the_weights_back_by_powers_of_two_changes_no_bit(data, monkeypatch):
    # weight decay so strong that the weights grow 16 times in an epoch; an eps that no variance feels
    strong = {"schedule": "constant", "schedule_args": {"lr": 0.1}, "weight_decay": 4.0, "momentum": 0.0, "epochs": 4}
    config = dataclasses.replace(TINY, **strong, regime="exponential", precision="float32")
    renormalised = train(config, data, device="cpu")
    monkeypatch.setattr("explr.experiments.arms.round", lambda value: 0, raising=False)
    plain = train(config, data, device="cpu")
    assert renormalised.history == plain.history
    assert renormalised.weight_norms == plain.weight_norms
    growth = plain.weight_norms["stem.weight"][-1] / plain.weight_norms["stem.weight"][0]
    assert growth > 1000


def test_exponential_weights_outgrow_float32_without_harm(data):
    strong = {"schedule": "constant", "schedule_args": {"lr": 0.1}, "weight_decay": 4.0, "momentum": 0.0, "epochs": 30}
    run = train(dataclasses.replace(TINY, **strong, regime="exponential", precision="float32"), data, device="cpu")
    assert run.history["log_lr"][-1] / math.log(10) > 38.6  # beyond float32
    assert run.weight_norms["stem.weight"][-1] > 1e18  # its square is beyond float32
    assert run.history["train_loss"][-1] < run.history["train_loss"][0]


@pytest.mark.parametrize("precision, tolerance", [("float32", 1e-3), ("tf32", 1e-3), ("bfloat16", 0.3)])
def test_lower_precisions_follow_float64_for_a_while(data, precision, tolerance):
    exact, lower = (
        train(dataclasses.replace(TINY, epochs=1, precision=name), data, device="cpu").history["train_loss"][0]
        for name in ("float64", precision)
    )
    assert 0.0 < abs(lower - exact) < tolerance * exact


def test_weights_that_are_not_finite_stop_the_run_and_the_step_is_named(data, monkeypatch):
    step = Arm.step

    def break_weights(self, index, batch):
        result = step(self, index, batch)
        if index == 11:  # the last one, so no loss shows it
            self.trainable["stem.weight"].data.fill_(math.nan)
        return result

    monkeypatch.setattr(Arm, "step", break_weights)
    with pytest.raises(ExplrError, match=r"norm of stem\.weight is nan after step 11"):
        train(TINY, data, device="cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("regime", ["weight_decay", "exponential"])
def test_captured_steps_compute_what_eager_steps_compute(data, regime):
    from explr.experiments.captured import CapturedArm

    config = dataclasses.replace(TINY, regime=regime, precision="float32")
    on_gpu = data.to("cuda")
    eager, captured = Arm(config, on_gpu, 12), CapturedArm(config, on_gpu, 12)
    for epoch in range(2):
        rows = []
        for arm in (eager, captured):
            arm.run_epoch(epoch)
            row, norms = arm.epoch_results(epoch)
            rows.append((*arm.losses.tolist(), row["test_loss"], *norms.values()))
        np.testing.assert_allclose(rows[1], rows[0], rtol=APART[epoch])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_arms_on_one_gpu_do_not_disturb_each_other(data):
    configs = [dataclasses.replace(TINY, precision="float32", seed=seed) for seed in range(3)]
    for together, config in zip(train_together(configs, data, device="cuda"), configs, strict=True):
        alone = train(config, data, device="cuda")
        for epoch, loss in enumerate(alone.history["train_loss"]):
            assert together.history["train_loss"][epoch] == pytest.approx(loss, rel=APART[epoch])


def test_checkpoint_of_another_run_is_refused_and_kept(data, tmp_path):
    checkpoint = tmp_path / "run.ckpt"
    checkpoint.write_bytes(b"not a checkpoint")
    with pytest.raises(ExplrError, match="not a checkpoint"):
        train(TINY, data, device="cpu", checkpoint=checkpoint)
    torch.save({"run": ["other data", "{}"]}, checkpoint)
    with pytest.raises(ExplrError, match="another run"):
        train(TINY, data, device="cpu", checkpoint=checkpoint)
    assert checkpoint.exists()


def test_a_device_is_tried_before_it_is_believed(monkeypatch):
    assert pick_device("cpu") == torch.device("cpu")
    for name in ("nonsense", "meta"):  # the second holds tensors, and computes nothing
        with pytest.raises(ExplrError, match=f"device='{name}' cannot be used here"):
            pick_device(name)

    def no_kernel(*args):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")

    monkeypatch.setattr("torch.nn.functional.conv2d", no_kernel)
    with pytest.raises(ExplrError, match=r"no kernel image is available for execution on the device\): use 'cpu'"):
        pick_device("cpu")


@pytest.mark.parametrize(
    "change, part",
    [
        (lambda data: {"train_labels": data.train_labels.clamp(max=8)}, "from 0 to 8, its test labels from 0 to 9"),
        (lambda data: {"train_labels": data.train_labels - 1}, "from -1 to 8"),
        (lambda data: {"test_labels": data.test_labels - 1}, "from 0 to 9, its test labels from -1 to 8"),
    ],
)
def test_a_class_that_no_network_could_know_is_refused_before_anything_is_trained(data, change, part):
    with pytest.raises(ExplrError, match=part):
        train(TINY, dataclasses.replace(data, **change(data)), device="cpu")


def test_diverged_run_stops_and_names_the_step(data, monkeypatch):
    step = Arm.step

    def diverge(self, index, batch):
        loss, logits, labels = step(self, index, batch)
        return loss * math.nan if index == 7 else loss, logits, labels

    monkeypatch.setattr(Arm, "step", diverge)
    with pytest.raises(ExplrError, match="loss of step 7 is nan"):
        train(TINY, data, device="cpu")


@pytest.mark.parametrize(
    "change, part",
    [
        ({"regime": "magic"}, "regime='magic'"),
        ({"schedule": "magic"}, "no function 'magic'"),
        ({"schedule": "Schedule"}, "no function 'Schedule'"),
        ({"schedule": "_check_steps"}, "no function '_check_steps'"),
        ({"schedule_args": {"rate": 0.1}}, "rate"),
        ({"model": "magic"}, "no function 'magic'"),
        ({"model_args": {"depth": 9}}, "depth=9"),
        ({"precision": "float8"}, "precision='float8'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"epochs": 0}, "epochs=0"),
        ({"seed": -1}, "seed=-1"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"weight_scale": 0.0}, "weight_scale=0.0"),
        ({"weight_scale": 3.0, "model_args": {"depth": 8, "width": 4, "frozen_head": False}}, "head.weight"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"regime": "exponential", "model_args": {"depth": 8, "width": 4, "frozen_head": False}}, "head.weight"),
        ({"regime": "texp", "model_args": {"depth": 8, "width": 4, "affine": True}}, "not scale-invariant"),
    ],
)
def test_bad_configurations_get_one_error_that_restates_them(data, change, part):
    with pytest.raises(ExplrError) as caught:
        train(dataclasses.replace(TINY, **change), data, device="cpu")
    assert part in str(caught.value)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 1}', '{"format": 99}', '{"format": 1, "config": {"x": 1}}'])
def test_damaged_record_gets_one_error_that_names_the_file(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(ExplrError, match=r"run\.json"):
        Run.load(path)


def test_record_is_plain_text_with_one_number_a_line_at_most(data, tmp_path):
    train(dataclasses.replace(TINY, epochs=1), data, device="cpu").save(tmp_path / "run.json")
    text = (tmp_path / "run.json").read_text()
    record = json.loads(text)
    assert record["config"]["regime"] == "weight_decay" and record["format"] == 1
    assert len(record["weight_norms"]) > 1 and re.search(r"\d, *-?\d", text) is None


@pytest.mark.parametrize("eps", [1e-30, 1e-5])
@pytest.mark.parametrize("regime", ["weight_decay", "exponential"])
def test_weights_carried_at_another_scale_compute_the_same_functions(data, eps, regime):
    """In training mode and, running statistics included, in evaluation mode."""
    plain = dataclasses.replace(TINY, regime=regime, epochs=5, model_args={"depth": 8, "width": 4, "eps": eps})
    scaled = dataclasses.replace(plain, weight_scale=3.0)
    result = compare(plain, scaled, data, steps=30)
    assert 0.0 < result.logit_error.max() < 1e-10
    assert result.weight_error.max() < 1e-10
    runs = [train(config, data, device="cpu") for config in (plain, scaled)]
    for name, values in runs[0].history.items():
        np.testing.assert_allclose(runs[1].history[name], values, rtol=1e-9)
    for name, norms in runs[0].weight_norms.items():
        np.testing.assert_allclose(runs[1].weight_norms[name], norms, rtol=1e-9)


@pytest.mark.parametrize("forgotten", ["eps", "running_var"])
def test_that_comparison_catches_what_a_scale_forgets(data, forgotten, monkeypatch):
    rescale = Arm._rescale

    def forgetful(self, factor):
        rescale(self, factor)
        for module in self.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                setattr(module, forgotten, getattr(module, forgotten) / factor**2)

    monkeypatch.setattr(Arm, "_rescale", forgetful)
    plain = dataclasses.replace(TINY, model_args={"depth": 8, "width": 4})
    runs = [train(dataclasses.replace(plain, weight_scale=scale), data, device="cpu") for scale in (1.0, 3.0)]
    assert abs(runs[1].history["test_loss"][-1] / runs[0].history["test_loss"][-1] - 1) > 1e-7


def test_a_scale_that_is_a_power_of_two_changes_no_bit_and_another_changes_every_float32_run(data):
    plain = dataclasses.replace(TINY, precision="float32", model_args={"depth": 8, "width": 4})
    one, two, three = (train(dataclasses.replace(plain, weight_scale=s), data, device="cpu") for s in (1.0, 2.0, 3.0))
    assert two.history == one.history and two.weight_norms == one.weight_norms
    assert three.history["train_loss"] != one.history["train_loss"]
    assert three.history["train_loss"][0] == pytest.approx(one.history["train_loss"][0], rel=1e-3)


def test_checkpoint_from_before_a_field_was_added_resumes(data, tmp_path):
    config = dataclasses.replace(TINY, epochs=3)
    checkpoint = tmp_path / "run.ckpt"
    whole = train(config, data, device="cpu", checkpoint=checkpoint)
    content = torch.load(checkpoint, weights_only=True)
    name, stored = content["run"]
    older = json.loads(stored)
    del older["weight_scale"]
    torch.save({**content, "run": [name, json.dumps(older)]}, checkpoint)
    assert train(config, data, device="cpu", checkpoint=checkpoint).history == whole.history
    for other in (dataclasses.replace(config, weight_scale=3.0), dataclasses.replace(config, seed=1)):
        with pytest.raises(ExplrError, match="another run"):
            train(other, data, device="cpu", checkpoint=checkpoint)
    torch.save({**content, "run": [name, json.dumps({**older, "unknown": 1})]}, checkpoint)
    with pytest.raises(ExplrError, match="another run"):
        train(config, data, device="cpu", checkpoint=checkpoint)
