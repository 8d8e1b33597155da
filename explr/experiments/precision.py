"""What a precision means on a device: whether it can be had there, which arithmetic it allows, which layout suits it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from explr.errors import ExplrError

_DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.float32, "float64": torch.float64}
_MATRIX_UNITS = (8, 0)  # the first compute capability whose matrix units take bfloat16 and TF32


def dtype_of_weights(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype that the weights have at a precision of :class:`~explr.experiments.records.RunConfig`.

    Raises:
        ExplrError: for an unknown precision, or bfloat16 on a GPU that would emulate it, slower than float32.

    >>> dtype_of_weights("bfloat16", torch.device("cpu"))
    torch.float32
    """
    if precision not in _DTYPES:
        raise ExplrError(f"precision={precision!r} is unknown: use one of {', '.join(_DTYPES)}.")
    if precision == "bfloat16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < _MATRIX_UNITS:
        name, (major, minor) = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        raise ExplrError(
            f"precision='bfloat16' on {name}, of compute capability {major}.{minor}: it takes 8.0 or later. Use 'float32'."
        )
    return _DTYPES[precision]


def layout(model: nn.Module, precision: str, device: torch.device) -> torch.memory_format:
    """Return the order of an image's numbers in memory in which the model is likely to be fastest.

    On a GPU channels last is what the matrix units want; the other units, and group norm, want the channels first. On a CPU
    channels last is faster, but with it the gradient of a narrow convolution can be wrong, or crash (oneDNN issue 6035).

    >>> layout(nn.BatchNorm2d(4), "float32", torch.device("cpu"))
    torch.channels_last
    >>> layout(nn.Conv2d(4, 8, kernel_size=1, stride=2), "float32", torch.device("cpu"))
    torch.contiguous_format
    """
    if device.type != "cuda":
        return torch.contiguous_format if any(map(_is_narrow, model.modules())) else torch.channels_last
    matrix_units = precision in ("tf32", "bfloat16") and torch.cuda.get_device_capability(device) >= _MATRIX_UNITS
    grouped = any(isinstance(module, nn.GroupNorm) for module in model.modules())
    return torch.channels_last if matrix_units and not grouped else torch.contiguous_format


def _is_narrow(module: nn.Module) -> bool:
    """Tell whether it is a 1x1 convolution with a stride, of fewer channels than oneDNN takes at once: 8 or (AVX-512) 16."""
    if not isinstance(module, nn.Conv2d) or set(module.kernel_size) != {1} or set(module.stride) == {1}:
        return False
    return module.in_channels // module.groups < 16


@contextmanager
def arithmetic(precision: str, *, autotune: bool = False) -> Iterator[None]:
    """In the block a GPU uses TF32 in convolutions if ``precision`` is "tf32", and nowhere else, whatever the user has set.

    ``autotune`` lets cuDNN try which of its convolutions is the fastest. The settings are torch's, of the whole process; they
    are as before after the block.

    >>> with arithmetic("float32", autotune=True):
    ...     torch.backends.cudnn.benchmark
    True
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    tf32 = precision == "tf32"
    if hasattr(cudnn, "conv"):  # where these are (torch 2.9 and later), one use of them makes the older ones raise
        switches: list[tuple[Any, str, Any]] = [
            (cudnn.conv, "fp32_precision", "tf32" if tf32 else "ieee"),
            (matmul, "fp32_precision", "ieee"),
        ]
    else:
        switches = [(cudnn, "allow_tf32", tf32), (matmul, "allow_tf32", False)]
    switches.append((cudnn, "benchmark", autotune))
    before = [(where, name, getattr(where, name)) for where, name, _ in switches]
    try:
        for where, name, value in switches:
            setattr(where, name, value)
        yield
    finally:
        for where, name, value in before:
            setattr(where, name, value)
