"""The engine trains with every optimizer that has a twin, and the twin's run computes the same functions."""

import dataclasses

import pytest

from explr import ExplrError, RunConfig, train
from explr.experiments.data import synthetic
from explr.experiments.training import compare

TINY = {"model": "preresnet", "model_args": {"depth": 8, "width": 4}, "batch_size": 16}
STRONG = {  # so that the weights double several times
    "sgd": {"schedule_args": {"lr": 0.2}, "weight_decay": 0.2, "momentum": 0.5},
    "nesterov": {"schedule_args": {"lr": 0.2}, "weight_decay": 0.2, "momentum": 0.5},
    "adamw": {"schedule_args": {"lr": 5e-3}, "weight_decay": 10.0},
}
every_optimizer = pytest.mark.parametrize("optimizer", STRONG)


def config(optimizer, **options):
    return RunConfig(**{**TINY, **STRONG[optimizer], "optimizer": optimizer, "epochs": 3, **options})


@every_optimizer
def test_the_twin_computes_the_same_functions_step_by_step(optimizer):
    tiny = {**TINY["model_args"], "eps": 1e-30}
    decay = config(optimizer, precision="float64", batch_size=8, model_args=tiny)
    result = compare(decay, dataclasses.replace(decay, regime="exponential"), synthetic(train=64, test=10), steps=15)
    assert result.logit_error.max() < 1e-9
    assert result.log_scale[-1] > 0.5


@every_optimizer
def test_whole_runs_agree_in_float64_and_the_weights_were_rescaled(optimizer):
    data = synthetic(train=64, test=32)
    tiny = {**TINY["model_args"], "eps": 1e-30}
    decay = config(optimizer, precision="float64", model_args=tiny)
    twin = dataclasses.replace(decay, regime="exponential")
    assert round(twin.learning_rates(12).log_scale[8] / 0.693) != 0
    first, second = train(decay, data, device="cpu"), train(twin, data, device="cpu")
    assert second.history["train_loss"] == pytest.approx(first.history["train_loss"], rel=1e-8)


@every_optimizer
def test_a_run_resumes_to_the_same_bits(optimizer, tmp_path, monkeypatch):
    data, twin = synthetic(train=64, test=32), config(optimizer, regime="exponential")
    whole = train(twin, data, device="cpu")
    from explr.experiments import arms

    results = arms.Arm.epoch_results

    def killed(self, epoch):
        if epoch == 2:
            raise KeyboardInterrupt
        return results(self, epoch)

    monkeypatch.setattr(arms.Arm, "epoch_results", killed)
    with pytest.raises(KeyboardInterrupt):
        train(twin, data, device="cpu", checkpoint=tmp_path / "run.checkpoint")
    monkeypatch.setattr(arms.Arm, "epoch_results", results)
    resumed = train(twin, data, device="cpu", checkpoint=tmp_path / "run.checkpoint")
    assert (resumed.history, resumed.weight_norms) == (whole.history, whole.weight_norms)


@pytest.mark.parametrize(
    "options, part",
    [
        ({"optimizer": "lion"}, "optimizer='lion'"),
        ({"betas": (0.9, 1.0)}, "betas=(0.9, 1.0)"),
        ({"betas": 5}, "betas=5"),
        ({"betas": ("a", 0.9)}, "betas=('a', 0.9)"),
        ({"weight_decay": "x"}, "weight_decay='x'"),
        ({"momentum": None}, "momentum=None"),
        ({"weight_scale": 1e200}, "weight_scale=1e+200"),
    ],
)
def test_bad_configurations_are_refused(options, part):
    with pytest.raises(ExplrError) as caught:
        RunConfig(**options)
    assert part in str(caught.value)


def test_texp_is_for_heavy_ball_momentum():
    with pytest.raises(ExplrError, match="Theorem 2"):
        RunConfig(optimizer="adamw", regime="texp").learning_rates(3)
