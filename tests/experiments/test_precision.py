import contextlib
import copy

import pytest
import torch
from torch import nn

from explr import ExplrError
from explr.experiments.models import preresnet, resnet
from explr.experiments.precision import arithmetic, dtype_of_weights, layout

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
NEW = hasattr(torch.backends.cudnn, "conv")  # torch 2.9 and later


def switches():
    """Return all that can be read of how float32 is computed on a GPU; what cannot be, after a mixed use, is an error."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    read = {"benchmark": cudnn.benchmark}
    for where, name in ((cudnn, "allow_tf32"), (matmul, "allow_tf32")):
        try:
            read[where, name] = getattr(where, name)
        except RuntimeError as error:
            read[where, name] = type(error)
    if NEW:
        read |= {"conv": cudnn.conv.fp32_precision, "rnn": cudnn.rnn.fp32_precision, "matmul": matmul.fp32_precision}
    return read


def effective():
    """Return whether convolutions, and whether products, use TF32."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    if NEW:
        return cudnn.conv.fp32_precision == "tf32", matmul.fp32_precision == "tf32"
    return cudnn.allow_tf32, matmul.allow_tf32


def everything_tf32():
    torch.backends.fp32_precision = "tf32"


def convolutions_ieee():
    torch.backends.cudnn.conv.fp32_precision = "ieee"


def everything_ieee():
    torch.backends.fp32_precision = "ieee"


def high():
    torch.set_float32_matmul_precision("high")


def older_switches():
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = True


USERS = [contextlib.nullcontext, high, older_switches, *[everything_tf32, everything_ieee, convolutions_ieee] * NEW]


@pytest.fixture(params=USERS, ids=lambda user: user.__name__)
def user(request):
    """Settings that a user may have made before."""
    request.param()
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    if NEW:
        torch.backends.fp32_precision = "none"
        torch.backends.cudnn.conv.fp32_precision = torch.backends.cudnn.rnn.fp32_precision = "tf32"
        torch.backends.cuda.matmul.fp32_precision = "none"


@pytest.mark.parametrize("precision, tf32", [("float32", False), ("bfloat16", False), ("float64", False), ("tf32", True)])
def test_tf32_is_used_in_convolutions_of_that_precision_only_and_settings_come_back(user, precision, tf32):
    before = switches()
    with pytest.raises(KeyboardInterrupt), arithmetic(precision, autotune=True):
        assert effective() == (tf32, False)
        assert torch.backends.cudnn.benchmark
        raise KeyboardInterrupt
    assert switches() == before


@pytest.mark.parametrize("capability, fits", [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bfloat16_is_refused_where_it_would_be_emulated(monkeypatch, capability, fits):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    assert dtype_of_weights("float32", CUDA) == dtype_of_weights("bfloat16", CPU) == torch.float32
    with contextlib.nullcontext() if fits else pytest.raises(ExplrError, match=r"bfloat16' on Tesla T4.* 7\.5.*Use 'float32'"):
        assert dtype_of_weights("bfloat16", CUDA) == torch.float32


@pytest.mark.parametrize(
    "precision, norm, capability, expected",
    [
        ("bfloat16", "batch", (8, 0), torch.channels_last),
        ("tf32", "batch", (9, 0), torch.channels_last),
        ("tf32", "batch", (7, 5), torch.contiguous_format),  # it has no matrix units for TF32
        ("float32", "batch", (9, 0), torch.contiguous_format),
        ("bfloat16", "group", (9, 0), torch.contiguous_format),
        ("bfloat16", "instance", (9, 0), torch.contiguous_format),
    ],
)
def test_layout_is_that_of_the_units_that_compute(monkeypatch, precision, norm, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    model = preresnet(8, width=16, norm=norm)
    assert layout(model, precision, CUDA) == expected
    assert layout(model, precision, CPU) == torch.channels_last  # the records of CPUs were made with it


@pytest.mark.parametrize("width", [2, 4, 8])
@pytest.mark.parametrize("make", [preresnet, resnet], ids=lambda make: make.__name__)
def test_a_processor_computes_the_gradients_of_narrow_networks_rightly(make, width):
    """In channels last oneDNN writes past its memory in a narrow 1x1 convolution with a stride: a crash, or wrong numbers."""
    torch.manual_seed(0)
    wide, images, labels = make(8, width=width).double(), torch.randn(20, 3, 32, 32), torch.arange(20) % 10
    single = copy.deepcopy(wide).float()
    order = layout(single, "float32", CPU)
    single.to(memory_format=order)
    for model, batch in ((wide, images.double()), (single, images.contiguous(memory_format=order))):
        nn.functional.cross_entropy(model(batch), labels).backward()
    for (name, exact), found in zip(wide.named_parameters(), single.parameters(), strict=True):
        if exact.grad is not None:
            # Rounding gives 1e-5, a ReLU that it switches 1e-2, what is written past the memory more than 1.
            assert (found.grad - exact.grad).norm() <= 0.1 * exact.grad.norm(), name


def test_images_and_weights_have_the_same_layout(monkeypatch):
    from explr.experiments.arms import Arm
    from explr.experiments.data import synthetic
    from explr.experiments.records import RunConfig

    config = RunConfig(model="preresnet", model_args={"depth": 8, "width": 16})
    for order in (torch.channels_last, torch.contiguous_format):
        monkeypatch.setattr("explr.experiments.arms.layout", lambda *args, order=order: order)
        arm = Arm(config, synthetic(32, 16), 1)
        seen = []
        conv = next(module for module in arm.model.modules() if isinstance(module, nn.Conv2d))
        conv.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append((module.weight, inputs[0])))
        arm.evaluate()
        assert all(tensor.is_contiguous(memory_format=order) for pair in seen for tensor in pair)
