"""The four families: sizes, options, and the proof that their default configuration is scale-invariant."""

import pytest
import torch
from torch import nn

from explr import ExplrError, models
from explr.invariance import scale_invariance

FAMILIES = {
    "convnet": lambda **options: models.convnet(3, 8, **options),
    "resnet": lambda **options: models.resnet(8, 8, **options),
    "preresnet": lambda **options: models.preresnet(8, 8, **options),
    "densenet": lambda **options: models.densenet(7, 8, **options),
}
NORMS = ["batch", "layer", "group", "instance"]
every_family = pytest.mark.parametrize("family", FAMILIES)
every_norm = pytest.mark.parametrize("norm", NORMS)
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@every_norm
@every_family
def test_default_configuration_is_proved_invariant(family, norm):
    report = scale_invariance(FAMILIES[family](norm=norm), IMAGES)
    assert report.invariant, report.table()
    assert report.degree == 0
    assert not report.rest


@pytest.mark.parametrize(
    "family, options, degree, kinds",
    [
        ("convnet", {"affine": True}, 1, {"output"}),
        ("resnet", {"affine": True}, 1, {"output"}),
        ("preresnet", {"affine": True}, None, {"unequal degrees", "output"}),
        ("densenet", {"affine": True, "norm": "layer"}, None, {"unequal degrees", "output"}),
        *[(family, {"frozen_head": False}, 1, {"output"}) for family in FAMILIES],
    ],
)
def test_the_other_configurations_say_why_they_are_not(family, options, degree, kinds):
    report = scale_invariance(FAMILIES[family](**options), IMAGES)
    assert not report.invariant
    assert report.degree == degree
    assert {obstruction.kind for obstruction in report.obstructions} == kinds


@pytest.mark.parametrize(
    "model, millions",
    [
        (models.resnet(20), 0.27),  # He et al. 2016a, table 6
        (models.resnet(32), 0.46),
        (models.preresnet32(), 0.46),
        (models.densenet(40), 1.04),  # Huang et al. 2017, table 2: 1.0M
    ],
)
def test_sizes_are_those_of_the_papers(model, millions):
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


@every_family
def test_blocks_have_a_first_convolution_and_logits_have_their_shape(family):
    model = FAMILIES[family](num_classes=7)
    assert all(isinstance(block.conv1, nn.Conv2d) for block in model.blocks)
    assert model(IMAGES).shape == (4, 7)


@every_family
def test_options_reach_every_layer(family):
    model = FAMILIES[family](norm="group", affine=True, frozen_head=False, eps=1e-3)
    norms = [module for module in model.modules() if isinstance(module, nn.GroupNorm)]
    assert norms
    assert all(norm.affine and norm.eps == 1e-3 for norm in norms)
    assert model.head.weight.requires_grad
    assert not FAMILIES[family]().head.weight.requires_grad


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: models.convnet(4), "depth=4 must be 3n"),
        (lambda: models.resnet(21), "depth=21 must be 6n"),
        (lambda: models.preresnet(2), "depth=2 must be 6n"),
        (lambda: models.densenet(8), "depth=8 must be 3n"),
        (lambda: models.convnet(norm="bach"), "norm='bach' is unknown"),
    ],
)
def test_bad_options_are_refused_with_a_remedy(build, message):
    with pytest.raises(ExplrError, match=message):
        build()


def test_an_unknown_option_is_refused_by_name():
    with pytest.raises(ExplrError, match=r"no option nrom: use norm, num_classes, affine, frozen_head, eps"):
        models.preresnet32(nrom="group")
