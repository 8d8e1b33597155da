"""Every symbolic verdict against numbers: f(cθ) and f(θ) in float64, for scale-invariant networks and for broken ones."""

import math
from collections import OrderedDict
from fractions import Fraction
from functools import partial

import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from explr import ExplrError, models
from explr.invariance import scale_invariance
from explr.invariance.lemma import lemma1
from tools.fuzz_prover import Program

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")

TINY = 1e-30  # torch >= 2.13 refuses eps = 0 in batch norm


# ---- networks


class Apply(nn.Module):
    """A function of the input and of the modules and parameters that it is given by name."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs):
        return self.function(self, *inputs)


class RawShortcut(nn.Module):
    """A pre-activation block as in widely copied code: its shortcut convolution takes the raw stream."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4, affine=False)
        self.conv = nn.Conv2d(4, 6, 1, bias=False)
        self.shortcut = nn.Conv2d(4, 6, 1, bias=False)
        self.last = nn.BatchNorm2d(6, affine=False)

    def forward(self, x):
        x = self.stem(x)
        x = self.shortcut(x) + self.conv(F.relu(self.norm(x)))
        return self.last(x).mean((2, 3))


class PreLayerNormBlock(nn.Module):
    """A pre-LN transformer block in the style of Hugging Face, with normalised queries and keys and a ReLU MLP."""

    def __init__(self, width=8, heads=2, qk_norm=True, affine=False, activation=F.relu):
        super().__init__()
        self.heads, self.qk_norm, self.activation = heads, qk_norm, activation
        self.ln_1 = nn.LayerNorm(width, elementwise_affine=affine)
        self.ln_2 = nn.LayerNorm(width, elementwise_affine=affine)
        self.qkv = nn.Linear(width, 3 * width)
        self.value_norm = nn.LayerNorm(width, elementwise_affine=affine)
        self.project = nn.Linear(width, width)
        self.up = nn.Linear(width, 2 * width)
        self.mid = nn.LayerNorm(2 * width, elementwise_affine=affine)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = self.qkv(self.ln_1(x)).chunk(3, dim=-1)
        q, k, v = (t.view(batch, length, self.heads, -1).transpose(1, 2) for t in (q, k, v))
        if self.qk_norm:
            q, k = F.layer_norm(q, q.shape[-1:], eps=TINY), F.layer_norm(k, k.shape[-1:], eps=TINY)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        attended = self.value_norm(attended.transpose(1, 2).reshape(batch, length, width))
        x = x + self.project(attended)
        return x + self.down(self.activation(self.mid(self.up(self.ln_2(x)))))


class Language(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.positions = nn.Embedding(5, 8)
        self.blocks = nn.Sequential(*[PreLayerNormBlock(**options) for _ in range(2)])
        self.norm = layer_norm(8)
        self.head = frozen(nn.Linear(8, 11))

    def forward(self, ids):
        x = self.words(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        return self.head(self.norm(self.blocks(x)))


class ChannelShuffle(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(3, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(8, affine=False)

    def forward(self, x):
        # The two halves have degrees 1 and 2; batch norm works channel by channel, so that is no matter.
        x = torch.cat([self.a(x), self.b(x) * self.b.weight.mean()], dim=1)
        return self.norm(F.relu_(x)).mean((2, 3))


def frozen(module):
    return module.requires_grad_(False)


def plain(*layers, width=8):
    """Linear, affine-free LayerNorm, then the given layers."""
    return nn.Sequential(nn.Linear(4, width), layer_norm(width), *layers)


def layer_norm(width):
    return nn.LayerNorm(width, elementwise_affine=False)


def formula(function):
    """A function of the input and two linear layers."""
    return Apply(function, a=linear(4), b=linear(4))


def rms(x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + TINY)


def spectral(module):
    return nn.utils.parametrizations.spectral_norm(module)


def frozen_gain(module):
    module = nn.utils.parametrizations.weight_norm(module)
    module.parametrizations.weight.original0.requires_grad_(False)
    return module


def old_weight_norm(module):
    module = nn.utils.weight_norm(module)
    module.weight_g.requires_grad_(False)
    return module


def tied():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), layer_norm(4), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    return model


def stored(norm):
    norm.running_mean.normal_()
    return norm.eval()


def attention(masked):
    mask = torch.triu(torch.full((5, 5), masked), diagonal=1)
    return Apply(bare_attention, q=linear(8, 8), k=linear(8, 8), v=linear(8, 8), mask=mask)


def bare_attention(self, x):
    q, k = F.normalize(self.q(x), dim=-1, eps=TINY), F.normalize(self.k(x), dim=-1, eps=TINY)
    return rms(torch.softmax(q @ k.mT + self.mask, dim=-1) @ self.v(x))


def in_place(self, x):
    x = self.a(x)
    x[:, :2].relu_()
    x[:, 2:] *= 3
    x *= self.a.weight.norm()
    return self.norm(x)


def linear(inputs=8, outputs=4, bias=False):
    return nn.Linear(inputs, outputs, bias=bias)


VECTORS = (6, 4)
TOKENS = (3, 5, 8)
SMALL = (4, 3, 8, 8)
IMAGE32 = (4, 3, 32, 32)

# name → (network, shape of the input, degree of the output: 0 for scale-invariant, None for not homogeneous)
CASES = {
    **{
        f"{family}-{norm}": (partial(getattr(models, family), depth, norm=norm, eps=TINY), IMAGE32, 0)
        for family, depth in {"convnet": 3, "resnet": 8, "preresnet": 8, "densenet": 7}.items()
        for norm in ["batch", "layer", "group", "instance"]
    },
    "preresnet, affine": (lambda: models.preresnet(8, affine=True), IMAGE32, None),
    "preresnet, trainable head": (lambda: models.preresnet(8, frozen_head=False), IMAGE32, 1),
    "densenet, affine, layer norm": (lambda: models.densenet(7, affine=True, norm="layer"), IMAGE32, None),
    "convnet, affine": (lambda: models.convnet(3, affine=True), IMAGE32, 1),
    "resnet, affine": (lambda: models.resnet(8, affine=True), IMAGE32, 1),
    "resnet, affine, trainable head": (lambda: models.resnet(8, affine=True, frozen_head=False), IMAGE32, 2),
    "shortcut on the raw stream": (RawShortcut, SMALL, None),
    "bias with a norm after it": (lambda: plain(nn.ReLU(), frozen(linear())), VECTORS, 0),
    "trainable head with bias": (lambda: plain(nn.ReLU(), linear(bias=True)), VECTORS, 1),
    "bias without a norm after it": (lambda: plain(linear(), nn.ReLU(), linear(4, 3, bias=True)), VECTORS, None),
    "frozen bias at degree 1": (lambda: nn.Sequential(frozen_bias(nn.Linear(4, 8)), nn.LayerNorm(8)), VECTORS, None),
    "frozen bias at degree 1, then batch norm": (
        lambda: nn.Sequential(frozen_bias(nn.Linear(4, 8)), nn.BatchNorm1d(8, affine=False)), VECTORS, 0,
    ),
    "frozen bias of zeros": (lambda: nn.Sequential(zero_bias(nn.Linear(4, 8)), layer_norm(8)), VECTORS, 0),
    "gelu at degree 0": (lambda: plain(nn.GELU(), frozen(linear())), VECTORS, 0),
    "gelu at degree 1": (lambda: nn.Sequential(linear(4, 8), nn.GELU(), layer_norm(8)), VECTORS, None),
    "tanh at degree 1": (lambda: plain(linear(), nn.Tanh()), VECTORS, None),
    "sigmoid gate at degree 0": (lambda: formula(lambda m, x: rms(m.a(x) * torch.sigmoid(rms(m.b(x))))), VECTORS, 0),
    "leaky relu, abs, max": (lambda: formula(lambda m, x: rms(F.leaky_relu(m.a(x)).abs().maximum(m.b(x)))), VECTORS, 0),
    "mlp of degree 3": (lambda: nn.Sequential(linear(4, 8), nn.ReLU(), linear(8, 8), nn.ReLU(), linear()), VECTORS, 3),
    "square root": (lambda: formula(lambda m, x: m.a(x).abs().sqrt()), VECTORS, Fraction(1, 2)),
    "reciprocal": (lambda: formula(lambda m, x: 1 / m.a(x).square()), VECTORS, -2),
    "ratio of weights": (lambda: formula(lambda m, x: m.a(x) / m.b(x).std()), VECTORS, 0),
    "max pooling, transposed and grouped convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3, groups=3, padding=1), nn.MaxPool2d(2), nn.InstanceNorm2d(6, eps=TINY), nn.ReLU6(),
            nn.ConvTranspose2d(6, 4, 2), nn.GroupNorm(2, 4, affine=False), nn.AdaptiveMaxPool2d(1), nn.Flatten(),
        ), SMALL, 0,
    ),
    "convolution in one and three dimensions": (
        lambda: Apply(lambda m, x: m.norm(m.b(m.a(x.flatten(2)).relu().view(*x.shape)[:, None]).flatten(2)),
        a=nn.Conv1d(3, 3, 3, padding=1, bias=False), b=nn.Conv3d(1, 2, 3, bias=False), norm=nn.BatchNorm1d(2, affine=False)),
        SMALL, 0,
    ),
    "dropout": (lambda: nn.Sequential(linear(4, 8), nn.Dropout(0.5), layer_norm(8)), VECTORS, 0),
    "weight norm, frozen gain": (lambda: nn.Sequential(frozen_gain(linear(4, 8)), nn.ReLU()), VECTORS, 0),
    "weight norm, trainable gain": (lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(linear(4, 8))), VECTORS, 1),
    "weight norm, deprecated": (lambda: nn.Sequential(old_weight_norm(linear(4, 8)), nn.ReLU()), VECTORS, 0),
    "spectral norm": (lambda: nn.Sequential(spectral(linear(4, 8)), nn.ReLU()), VECTORS, 0),
    "cosine classifier": (
        lambda: Apply(
            lambda m, x: F.normalize(m.a(x), dim=1) @ F.normalize(m.w, dim=0),
            a=linear(4), w=nn.Parameter(torch.randn(4, 3)),
        ), VECTORS, 0,
    ),
    "cosine similarity": (lambda: formula(lambda m, x: F.cosine_similarity(m.a(x), m.b(x), dim=0)), VECTORS, 0),
    "rms norm module": (lambda: nn.Sequential(linear(4, 8), nn.RMSNorm(8, eps=TINY, elementwise_affine=False)), VECTORS, 0),
    "rms norm by hand": (lambda: formula(lambda m, x: rms(m.a(x))), VECTORS, 0),
    "standardised by hand": (
        lambda: formula(lambda m, x: (m.a(x) - m.a(x).mean(0)) / (m.a(x).std(0) + TINY)), VECTORS, 0,
    ),
    "weight standardisation": (
        lambda: formula(
            lambda m, x: (x @ ((m.a.weight - m.a.weight.mean(1)[:, None]) / torch.sqrt(m.a.weight.var(1)[:, None] + TINY)).T)
        ), VECTORS, 0,
    ),
    "constant too large for an eps": (lambda: formula(lambda m, x: m.a(x) / (m.a(x).std(0) + 0.5)), VECTORS, None),
    "tiny constant added to something tiny": (lambda: formula(lambda m, x: m.a(x) * 1e-3 + 1e-3), VECTORS, None),
    "batch norm with stored statistics": (
        lambda: nn.Sequential(linear(4, 8), stored(nn.BatchNorm1d(8, affine=False))), VECTORS, None,
    ),
    "language model, pre-LN": (Language, (3, 5), 0),
    "language model, no QK norm": (lambda: Language(qk_norm=False), (3, 5), None),
    "language model, gelu": (lambda: Language(activation=F.gelu), (3, 5), 0),
    "language model, affine": (lambda: Language(affine=True), (3, 5), None),
    "attention by hand, infinite mask": (lambda: attention(-math.inf), TOKENS, 0),
    "attention by hand, finite mask": (lambda: attention(-1e4), TOKENS, 0),
    "transformer encoder of torch": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2), TOKENS, None,
    ),
    "tied weights": (tied, VECTORS, 1),
    "concatenated degrees, then batch norm": (ChannelShuffle, SMALL, 0),
    "concatenated degrees, then linear": (
        lambda: Apply(lambda m, x: m.h(torch.cat([x, m.a(x)], 1)), a=linear(4), h=frozen(linear(8))), VECTORS, None,
    ),
    "written into views": (lambda: Apply(in_place, a=linear(4, 4), norm=layer_norm(4)), VECTORS, 0),
    "comparison with 0": (lambda: formula(lambda m, x: rms(torch.where(m.a(x) > 0, m.a(x), 2 * m.a(x)))), VECTORS, 0),
    "comparison with 1": (lambda: formula(lambda m, x: rms(torch.where(m.a(9 * x) > 1, m.a(x), m.b(x)))), VECTORS, None),
    "number of entries": (lambda: formula(lambda m, x: torch.linalg.vector_norm(m.a(x), 0, dim=1) * x[:, 0]), VECTORS, 0),
    "out of place and back": (lambda: formula(lambda m, x: torch.zeros_like(x).copy_(m.a(x)).add_(m.b(x))), VECTORS, 1),
    "zeros made ones": (lambda: formula(lambda m, x: m.a(x) + torch.zeros_like(x).fill_(1)), VECTORS, None),
    "argmax": (lambda: formula(lambda m, x: F.one_hot(m.a(x).argmax(1), 4) * x), VECTORS, 0),
    "rounded": (lambda: formula(lambda m, x: m.a(9 * x).int() * x), VECTORS, None),
    "einsum, mean, var": (
        lambda: formula(lambda m, x: torch.einsum("bi,ij,bj->bj", m.a(x), m.b.weight, x) / m.a(x).var().pow(1.0)),
        VECTORS, 0,
    ),
    "lstm": (lambda: Apply(lambda m, x: m.a(x)[0], a=nn.LSTM(8, 4, batch_first=True)), TOKENS, None),
}  # fmt: skip

TORCHVISION = {
    "resnet18": lambda: torchvision.models.resnet18(num_classes=10),
    "vgg11_bn": lambda: torchvision.models.vgg11_bn(num_classes=10),
    "densenet121": lambda: torchvision.models.densenet121(num_classes=10),
    "mobilenet_v3_small": lambda: torchvision.models.mobilenet_v3_small(num_classes=10),
    "convnext_tiny": lambda: torchvision.models.convnext_tiny(num_classes=10),
    "vit_b_16": lambda: torchvision.models.vit_b_16(num_classes=10, image_size=32),
    "shufflenet_v2_x0_5": lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=10),
}


def frozen_bias(module):
    module.bias.requires_grad_(False)
    return module


def zero_bias(module):
    nn.init.zeros_(module.bias)
    return frozen_bias(module)


# ---- numbers


def prepared(build):
    """Build in float64, with all eps negligible, and no trainable number at a special value such as 0 or 1."""
    torch.manual_seed(0)
    model = build().double()
    for module in model.modules():
        if hasattr(module, "eps") and not isinstance(module, nn.utils.parametrizations._SpectralNorm):
            module.eps = TINY
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and (parameter.ndim < 2 or not parameter.any()):
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def inputs_of(shape, model):
    if any(isinstance(module, nn.Embedding) for module in model.modules()):
        return torch.randint(5, shape)
    return torch.randn(shape, dtype=torch.float64)


def at_scale(model, factor, x, names=None):
    """f(cθ) with the parameters in names scaled, or all trainable ones; from the same buffers and random numbers every time."""
    names = {name for name, p in model.named_parameters() if p.requires_grad} if names is None else names
    weights = {name: factor * p.detach() if name in names else p.detach() for name, p in model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    torch.manual_seed(1)
    with torch.no_grad():
        return functional_call(model, {**weights, **buffers}, (x.clone(),))


def distance(a, b):
    return float((a - b).norm() / b.norm())


def homogeneity_error(model, x, factor, degree):
    """|f(cθ) - c^d f(θ)| relative; for degree None the least over all d."""
    scaled, plain = at_scale(model, factor, x), at_scale(model, 1.0, x)
    power = factor ** float(degree) if degree is not None else float((scaled * plain).sum() / plain.square().sum())
    return distance(scaled / power, plain)


@pytest.mark.parametrize("name", CASES)
def test_verdict_agrees_with_numbers(name):
    build, shape, degree = CASES[name]
    model = prepared(build)
    x = inputs_of(shape, model)
    report = scale_invariance(model, x)
    assert report.degree == degree, report.table()
    assert report.invariant == (degree == 0)
    assert bool(report.obstructions) != report.invariant
    for factor in (0.7, 3.0):
        error = homogeneity_error(model, x, factor, degree)
        assert (error > 1e-4) if degree is None else (error < 1e-9), f"f(cθ) is off by {error:.1e} at c = {factor}"
    converted = {name for name in (*report.alone, *(n for part in report.joint for n in part))}
    assert distance(at_scale(model, 3.0, x, converted), at_scale(model, 1.0, x)) < 1e-9
    for part in [(name,) for name in report.alone] + list(report.joint):
        assert distance(at_scale(model, 3.0, x, set(part)), at_scale(model, 1.0, x)) < 1e-9, f"{part} is not invariant"


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_as_it_is_and_with_the_rest_frozen(name):
    model = prepared(TORCHVISION[name])
    x = inputs_of((3, 3, 32, 32) if name in ("vit_b_16", "convnext_tiny") else (3, 3, 64, 64), model)
    report = scale_invariance(model, x)
    assert not report.invariant
    assert report.degree is None
    assert homogeneity_error(model, x, 2.0, None) > 1e-4
    for parameter in report.rest:
        model.get_parameter(parameter).requires_grad_(False)
    mended = scale_invariance(model, x)
    assert mended.invariant, mended.table()
    assert not mended.rest
    error = homogeneity_error(model, x, 2.0, 0)
    assert error < 1e-8, f"f(cθ) is off by {error:.1e}"


# ---- random networks: whatever the analysis claims must be so

# Of the steps that the fuzz has, those that draw no random numbers, carry nothing on and are smooth enough for any factor.
STEPS = (
    *("linear", "biased", "relu", "abs", "square", "root", "inverse", "add", "subtract", "multiply", "divide", "layer norm"),
    *("batch norm", "gelu", "softmax", "constant", "maximum", "halves", "detached", "in place"),
)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 7)), min_size=1, max_size=8), st.sampled_from([0.5, 1.7])
)
def test_every_claim_about_a_random_network_is_true(steps, factor):
    model = prepared(lambda: Program(steps, "own"))
    x = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    if not torch.isfinite(at_scale(model, 1.0, x)).all() or at_scale(model, 1.0, x).norm() < 1e-6:
        return
    report = scale_invariance(model, x)
    if any(norm.variance < 1e-9 for norm in report.norms.values()):
        return  # a norm of a constant divides rounding errors by eps
    if report.degree is not None:
        assert homogeneity_error(model, x, factor, report.degree) < 1e-6, report.table()
    for part in [(name,) for name in report.alone] + list(report.joint):
        assert report.invariant_in(part)
        assert distance(at_scale(model, factor, x, set(part)), at_scale(model, 1.0, x)) < 1e-6, (part, report.table())


# ---- what the report says


def small_preresnet(**options):
    return models.preresnet(8, 4, **options)


def test_first_convolutions_are_invariant_alone_and_the_stream_together():
    report = scale_invariance(small_preresnet(), torch.randn(IMAGE32))
    assert report.alone == tuple(f"blocks.{i}.conv1.weight" for i in range(3))
    assert report.joint[0] == ("stem.weight", "blocks.0.conv2.weight")
    assert report.invariant_in(["blocks.1.conv1.weight"])
    assert not report.invariant_in(["stem.weight"])


def test_obstructions_name_module_line_degrees_and_remedy():
    report = scale_invariance(RawShortcut(), torch.randn(SMALL))
    (found,) = report.obstructions
    assert found.kind == "unequal degrees"
    assert found.operation == "add"
    assert set(found.degrees) == {1, 2}
    assert "x = self.shortcut(x) + self.conv(F.relu(self.norm(x)))" in found.source
    assert found.source.startswith("test_invariance.py:")
    assert set(found.parameters) <= {"stem.weight", "shortcut.weight", "conv.weight"}
    assert "after norm and activation" in found.remedy


@pytest.mark.parametrize(
    "build, shape, path, remedy",
    [
        (lambda: models.preresnet(8, 4, affine=True), IMAGE32, "blocks.0", "affine=False"),
        (lambda: plain(linear(), linear(4, 3, bias=True), nn.ReLU()), VECTORS, "3", "Freeze or remove the bias"),
        (lambda: plain(linear(), nn.GELU()), VECTORS, "3", "norm without trainable affine before it"),
        (lambda: Language(qk_norm=False), (3, 5), "blocks.0", "Normalise queries and keys"),
        (lambda: nn.Sequential(linear(4, 8), stored(nn.BatchNorm1d(8))), VECTORS, "1", "module.train()"),
    ],
)
def test_every_kind_of_obstruction_has_a_remedy(build, shape, path, remedy):
    model = build()
    x = torch.randint(5, shape) if len(shape) == 2 and shape[1] == 5 else torch.randn(shape)
    found = scale_invariance(model, x).obstructions[0]
    assert found.path == path
    assert remedy in found.remedy
    assert remedy in str(found)


@pytest.mark.parametrize("function", [lambda x: x + 1.0, lambda x: 1.0 - x, lambda x: F.relu(x) * F.relu6(x + 3) / 6])
def test_a_constant_that_is_added_is_no_shortcut(function):
    report = scale_invariance(formula(lambda m, x: rms(function(m.a(x)))), torch.randn(VECTORS))
    assert "A constant is added to what scales: put a norm" in report.obstructions[0].remedy
    assert not any("shortcut" in obstruction.remedy for obstruction in report.obstructions)


def test_unknown_operation_is_reported_not_guessed():
    model = formula(lambda m, x: torch.special.bessel_j0(m.a(x)))
    report = scale_invariance(model, torch.randn(VECTORS))
    assert not report.invariant
    assert report.obstructions[0].kind == "unknown operation"
    assert "undecided" in report.verdict
    assert "special_bessel_j0" in report.table()


def test_unknown_operation_on_what_does_not_scale_is_harmless():
    report = scale_invariance(formula(lambda m, x: torch.special.bessel_j0(rms(m.a(x)))), torch.randn(VECTORS))
    assert report.invariant


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.norm = linear(4, 4), nn.BatchNorm1d(4, affine=False)

    def forward(self, x):
        return self.norm(self.body(x))


class InParts(nn.Module):
    """Calls parts of its containers; torch.export names these where some module has two names."""

    def __init__(self):
        super().__init__()
        self.one = self.other = nn.ReLU()
        self.row, self.list = nn.Sequential(*[Block() for _ in range(4)]), nn.ModuleList([Block() for _ in range(4)])

    def forward(self, x):
        x = self.row[3:](self.row[:1](self.row[1:3](x)))
        for block in (*self.list[2:], *self.list[:-2][::-1]):
            x = block(x)
        return x


def test_norms_in_a_part_of_a_container_have_their_own_names():
    report = scale_invariance(Apply(lambda m, x: m.parts(x), parts=InParts()), torch.randn(5, 4))
    calls = [f"row.{i}" for i in (1, 2, 0, 3)] + [f"list.{i}" for i in (2, 3, 1, 0)]
    assert list(report.norms) == [f"parts.{path}.norm" for path in calls]
    assert report.invariant and len(report.alone) == 8
    assert "slice" not in report.table(full=True)


def test_norms_are_reported_with_degree_eps_and_variance():
    torch.manual_seed(0)
    model = nn.Sequential(linear(4, 8), linear(8, 8), nn.BatchNorm1d(8, affine=False, eps=1e-3))
    x = torch.randn(64, 4)
    norm = scale_invariance(model, x).norms["2"]
    variances = model[1](model[0](x)).var(0, correction=0)
    assert norm.kind == "batch_norm"
    assert norm.degree == 2
    assert norm.eps == 1e-3
    assert norm.variance == pytest.approx(float(variances.min()), rel=1e-5)
    assert norm.relative_eps == pytest.approx(1e-3 / float(variances.median()), rel=1e-5)


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(4), nn.InstanceNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm((4, 6, 6)), nn.RMSNorm((4, 6, 6), eps=1e-6)],
)
def test_every_norm_reports_the_variance_that_it_divides_by(norm):
    report = scale_invariance(nn.Sequential(nn.Conv2d(3, 4, 3), norm), torch.randn(SMALL))
    assert 0.0 < report.norms["1"].variance <= report.norms["1"].median_variance < 10.0


def test_norm_degrees_follow_the_parameters_that_scale():
    model = small_preresnet()
    report = scale_invariance(model, torch.randn(IMAGE32))
    assert set(report.norm_degrees().values()) == {1}
    only = report.norm_degrees([model.blocks[0].conv1.weight])
    assert only["blocks.0.norm2"] == 1
    assert only["blocks.0.norm1"] == 0
    with pytest.raises(ExplrError, match="not a trainable parameter"):
        report.norm_degrees([model.head.weight])


def test_norm_that_sees_several_degrees_has_no_single_one():
    report = scale_invariance(ChannelShuffle(), torch.randn(SMALL))
    assert report.norms["norm"].degree is None
    with pytest.raises(ExplrError, match="degrees 1 and 2"):
        report.norm_degrees()


def test_eps_by_hand_is_reported_as_an_approximation():
    model = formula(lambda m, x: m.a(x) / (m.a(x).std(0) + 1e-5))
    report = scale_invariance(model, torch.randn(VECTORS))
    (found,) = report.approximations
    assert report.invariant
    assert report.verdict == "scale-invariant, up to the eps of its norms"
    assert (found.operation, found.eps, found.degree) == ("add", 1e-5, 1)
    assert 1e-6 < found.relative < 1e-3
    assert "Constants" in report._repr_html_()


BOUNDED = {
    "of either sign": (lambda m, x: m.a(x) / m.a(x).clamp(min=1e-6), False),
    "of either sign, clamp_min": (lambda m, x: m.a(x) / torch.clamp_min(m.a(x), 1e-6), False),
    "of either sign, in place": (lambda m, x: m.a(x) / m.a(x).clamp_(min=1e-6), False),
    "absolute": (lambda m, x: m.a(x) / m.a(x).abs().clamp(min=1e-6), True),
    "a norm": (lambda m, x: m.a(x) / m.a(x).norm(dim=1, keepdim=True).clamp(min=1e-6), True),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_a_tiny_lower_bound_is_an_eps_of_what_is_positive_alone(name):
    function, invariant = BOUNDED[name]
    torch.manual_seed(0)
    model, x = formula(function).double(), torch.randn(64, 4).double()
    model.b.requires_grad_(False)
    report = scale_invariance(model, x)
    assert report.invariant == invariant, report.table()
    change = distance(at_scale(model, 3.0, x), at_scale(model, 1.0, x))
    assert (change < 1e-3) if invariant else (change > 1e-2), change
    if not invariant:
        assert "takes the place of what is negative" in report.obstructions[0].remedy


def test_page_is_escaped_and_accessible():
    model = nn.Sequential(OrderedDict({"<b>": linear(4), "gelu&": nn.GELU()}))
    page = scale_invariance(model, torch.randn(VECTORS))._repr_html_()
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
    assert "gelu&amp;" in page
    assert page.count("<caption>") == page.count("<table>")
    assert 'scope="col"' in page
    assert "color" not in page  # the page's own colours, light or dark


def test_table_has_degree_in_and_out():
    table = scale_invariance(small_preresnet(), torch.randn(IMAGE32)).table().splitlines()
    assert table[0] == "scale-invariant, up to the eps of its norms"
    assert any(line.split() == ["blocks.1.norm1", "batch_norm", "1", "0"] for line in table)
    assert any(line.split() == ["blocks.1", "add", "1,", "1", "1"] for line in table)


# ---- parameter groups


@pytest.mark.parametrize(
    "build",
    [
        lambda: models.resnet(8, 4, affine=True, frozen_head=False),
        lambda: models.preresnet(8, 4, affine=True, frozen_head=False),
        lambda: models.densenet(7, 4, affine=True, frozen_head=False, norm="group"),
    ],
)
def test_scaling_the_first_group_changes_nothing(build):
    model = prepared(build)
    x = torch.randn(IMAGE32, dtype=torch.float64)
    report = scale_invariance(model, x)
    converted, rest = report.parameter_groups(lr=0.1, weight_decay=5e-4, momentum=0.9)
    assert converted["scale_invariant"] is True
    assert rest["scale_invariant"] is False
    assert {id(p) for g in (converted, rest) for p in g["params"]} == {id(p) for p in model.parameters() if p.requires_grad}
    assert any(p is model.head.weight for p in rest["params"])
    assert all(any(p is block.conv1.weight for p in converted["params"]) for block in model.blocks)
    chosen = {id(p) for p in converted["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in chosen}
    assert distance(at_scale(model, 3.0, x, names), at_scale(model, 1.0, x)) < 1e-9
    optimizer = torch.optim.SGD([converted, rest])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [5e-4, 5e-4]


def test_an_invariant_network_is_one_group():
    (group,) = scale_invariance(small_preresnet(), torch.randn(IMAGE32)).parameter_groups(lr=0.1)
    assert group["scale_invariant"] is True


# ---- nothing is changed


def snapshot(model):
    tensors = {name: tensor.detach().clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    gradients = {f"{name}.grad": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    flags = [p.requires_grad for p in model.parameters()], [module.training for module in model.modules()]
    return {**tensors, **gradients, "random": torch.get_rng_state()}, flags, [id(p) for p in model.parameters()]


def busy_model():
    """Everything that could be disturbed: running statistics, power iteration, dropout, gradients, a submodule in eval mode."""
    model = nn.Sequential(spectral(linear(4, 8)), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Dropout(0.1).eval(), linear(8, 3))
    model[4].requires_grad_(False)
    model(torch.randn(5, 4)).sum().backward()
    return model


def explode(*_):
    raise RuntimeError("no loss today")


@pytest.mark.parametrize("width", [4, 7])  # 7 does not fit
@pytest.mark.parametrize(
    "use",
    [
        lambda model, x, y: scale_invariance(model, x),
        lambda model, x, y: lemma1(model, F.cross_entropy, x, y),
        lambda model, x, y: lemma1(model, explode, x, y),
    ],
    ids=["scale_invariance", "lemma1", "lemma1 with a failing loss"],
)
def test_the_model_and_the_random_state_stay_as_they_are(use, width):
    model, x, y = busy_model(), torch.randn(5, width), torch.randint(3, (5,))
    before, inputs = snapshot(model), x.clone()
    try:
        use(model, x, y)
        assert width == 4
    except ExplrError:
        pass
    tensors, *rest = snapshot(model)
    assert rest == list(before[1:])
    assert tensors.keys() == before[0].keys()
    assert [name for name in tensors if not torch.equal(tensors[name], before[0][name])] == []
    assert torch.equal(x, inputs)


# ---- bad input


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = linear(4)

    def forward(self, x):
        return self.a(x) if x.sum() > 0 else -self.a(x)


def through_data(m, x):
    m.a.weight.data = torch.renorm(m.a.weight.data, 2, 0, 1.0)
    return rms(m.a(x))


def gradient_inside(m, x):
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(m.a(x).pow(2).sum(), x, create_graph=True)
    return rms(gradient)


def written_too_late(m, x):
    y = rms(m.a(x)) @ m.b.weight
    with torch.no_grad():
        m.b.weight.zero_()
    return y


BAD = {
    "wrong shape": (lambda: scale_invariance(small_preresnet(), torch.randn(4, 5, 9, 9)), r"does not run on .*\(4, 5, 9, 9\)"),
    "no inputs": (lambda: scale_invariance(small_preresnet()), "needs inputs"),
    "not a module": (lambda: scale_invariance(torch.relu, torch.randn(2)), "takes a torch.nn.Module"),
    "eval mode": (lambda: scale_invariance(small_preresnet().eval(), torch.randn(IMAGE32)), r"model.train\(\)"),
    "nothing trainable": (lambda: scale_invariance(frozen(linear(4)), torch.randn(VECTORS)), "requires grad"),
    "from torch.jit": (
        lambda: scale_invariance(torch.jit.script(linear(4)), torch.randn(VECTORS)), "ScriptModule comes from torch.jit",
    ),
    "from torch.jit, traced": (
        lambda: lemma1(torch.jit.trace(linear(4), torch.ones(VECTORS)), F.mse_loss, torch.ones(VECTORS), torch.ones(6)),
        "comes from torch.jit, and lemma1 takes a network in Python",
    ),
    "a part from torch.jit": (
        lambda: scale_invariance(nn.Sequential(torch.jit.script(linear(4))), torch.randn(VECTORS)), "^0 comes from torch.jit",
    ),
    "written through .data": (
        lambda: scale_invariance(formula(through_data), torch.randn(VECTORS)), r"under torch.no_grad\(\), with copy_ and not",
    ),
    "a gradient in the forward pass": (
        lambda: scale_invariance(formula(gradient_inside), torch.randn(VECTORS)), "cannot trace Apply: (?!.*[.]data of)",
    ),
    "a backward that fails": (
        lambda: lemma1(formula(written_too_late), F.mse_loss, torch.randn(VECTORS), torch.randn(VECTORS)),
        "the backward pass of Apply fails: one of the variables",
    ),
    "a loss that is complex": (
        lambda: lemma1(linear(4), lambda a, b: a.sum() + 0j, torch.randn(VECTORS), torch.randn(VECTORS)), "finite .* and real",
    ),
    "does not export": (lambda: scale_invariance(Branches(), torch.randn(VECTORS)), "torch.export cannot trace Branches"),
    "factor 0": (lambda: lemma1(linear(4), F.mse_loss, torch.randn(2, 4), torch.randn(2, 4), factor=0.0), "factor=0.0"),
    "factor -1": (lambda: lemma1(linear(4), F.mse_loss, torch.randn(2, 4), torch.randn(2, 4), factor=-1), "factor=-1"),
    "factor nan": (lambda: lemma1(linear(4), F.mse_loss, torch.randn(2, 4), torch.randn(2, 4), factor=math.nan), "factor=nan"),
    "factor inf": (lambda: lemma1(linear(4), F.mse_loss, torch.randn(2, 4), torch.randn(2, 4), factor=math.inf), "factor=inf"),
    "no target": (lambda: lemma1(linear(4), F.mse_loss, torch.randn(2, 4)), "cross_entropy, images"),
    "loss not a scalar": (
        lambda: lemma1(linear(4), lambda a, b: a - b, torch.randn(2, 4), torch.randn(2, 4)), r"the loss is shape \(2, 4\)",
    ),
    "loss not finite": (
        lambda: lemma1(linear(4), lambda a, b: (a / 0).sum(), torch.randn(2, 4), torch.randn(2, 4)), "finite scalar",
    ),
    "lemma1 in eval mode": (lambda: lemma1_of(small_preresnet().eval()), r"model.train\(\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_error(name, capfd):
    call, message = BAD[name]
    with pytest.raises(ExplrError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


# ---- Lemma 1


def lemma1_of(model, **options):
    torch.manual_seed(3)
    dtype = next(model.parameters()).dtype
    return lemma1(model, F.cross_entropy, torch.randn(IMAGE32, dtype=dtype), torch.randint(10, (4,)), **options)


@pytest.mark.parametrize("factor", [2.0, 0.1, 1e3])
@pytest.mark.parametrize("family", [models.convnet, models.resnet, models.preresnet, models.densenet])
def test_lemma_1_holds_to_rounding_without_eps(family, factor):
    depth = {models.convnet: 3, models.densenet: 7}.get(family, 8)
    report = lemma1_of(family(depth, 8, eps=TINY).double(), factor=factor)
    assert abs(report.cosine) < 1e-13
    assert report.gradient_error < 1e-11
    assert report.holds()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["batch", "layer", "group", "instance"])
def test_lemma_1_holds_to_its_tolerance_with_the_default_eps(norm, dtype):
    report = lemma1_of(small_preresnet(norm=norm).to(dtype))
    assert report.holds(), report.table()
    assert not report.holds(1e-9)
    assert report.table().startswith("Lemma 1 holds")


@pytest.mark.parametrize(
    "model",
    [
        small_preresnet(affine=True),
        small_preresnet(frozen_head=False),
        models.resnet(8, 4, affine=True),
        models.convnet(3, 8, affine=True),
    ],
)
def test_lemma_1_fails_loudly_where_the_network_is_not_invariant(model):
    report = lemma1_of(model)
    assert not report.holds()
    assert report.table().startswith("Lemma 1 FAILS")
    assert "FAILS" in report.table().splitlines()[-1]
    assert "FAILS" in report._repr_html_()


def test_a_parameter_of_the_stream_is_perpendicular_only_in_the_sum():
    report = lemma1_of(small_preresnet(eps=TINY).double())
    cosine = {row.name: abs(row.cosine) for row in report.rows}
    assert cosine["blocks.0.conv1.weight"] < 1e-12
    assert cosine["stem.weight"] > 1e-3
    assert all(row.gradient_error < 1e-10 for row in report.rows)


def test_lemma_1_compares_gradients_under_the_same_dropout():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(3072, 16), nn.LayerNorm(16, elementwise_affine=False, eps=TINY), nn.Dropout(0.5)
    )
    assert lemma1_of(model.double()).gradient_error < 1e-12


def test_lemma_1_sees_norms_that_are_called_by_name_and_without_a_batch():
    x, y = torch.randn(6, 4), torch.randn(6, 4)
    by_name = Apply(lambda m, x: m.n(input=m.a(x)), a=linear(4), n=nn.LayerNorm(4, eps=1e-2, elementwise_affine=False))
    assert lemma1(by_name, F.mse_loss, x, y).eps_share > 1e-4
    without_batch = Apply(lambda m, x: m.n(m.a(x)), a=linear(4), n=nn.InstanceNorm1d(6, eps=1e-2))
    assert lemma1(without_batch, F.mse_loss, x, y).eps_share > 1e-4


class Waves(nn.Module):
    """Complex weights, whose phase the output feels, and whose size it does not."""

    def __init__(self, size):
        super().__init__()
        self.w, self.size = nn.Parameter(torch.randn(4, 4, dtype=torch.complex128)), size

    def forward(self, x):
        y = x.to(self.w.dtype) @ self.w
        return torch.view_as_real(y / self.size(y)).flatten(1)


def test_lemma_1_of_complex_weights_is_about_both_parts():
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 8, dtype=torch.float64)
    report = lemma1(Waves(torch.linalg.vector_norm), F.mse_loss, x, y)
    assert report.holds(1e-10), report.table()
    model = Waves(lambda y: torch.linalg.vector_norm(y.real.detach()))
    (row,) = lemma1(model, F.mse_loss, x, y).rows
    weight = model.w.detach().requires_grad_()
    out = x.to(weight.dtype) @ weight
    F.mse_loss(torch.view_as_real(out / torch.linalg.vector_norm(out.real.detach())).flatten(1), y).backward()
    assert row.weight == pytest.approx(float(model.w.detach().norm()))
    assert row.inner == pytest.approx(float((weight.grad.conj() * weight).real.sum())) and abs(row.cosine) > 1e-2


def test_complex_weights_are_verified():
    x = torch.randn(6, 4, dtype=torch.float64)
    report = scale_invariance(Waves(torch.linalg.vector_norm), x)
    assert report.alone == ("w",) and report.verified and report.verification.change < 1e-12
