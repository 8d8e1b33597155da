"""The networks of the book, in configurations that are scale-invariant and in ones that are not.

A network is scale-invariant in its trainable parameters when every path to the output passes a normalisation without trainable
affine parameters, paths that meet carry the same power of the scale, and the last layer is frozen (Li & Arora 2020,
Appendix C). All four families are so by default, up to eps; :func:`~explr.invariance.analysis.scale_invariance` proves it, or
says why not.

Every family takes the same five :class:`Options`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypedDict, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from explr.errors import ExplrError

if TYPE_CHECKING:
    from typing_extensions import Unpack

Norm = Literal["batch", "layer", "group", "instance"]
NormLayer = Callable[[int], nn.Module]  # channels → normalisation layer


class Options(TypedDict, total=False):
    """What every family takes, by keyword.

    Attributes:
        norm: the normalisation layer: "batch" (default), "layer" (over channels and space), "group" or "instance".
        num_classes: outputs (default: 10).
        affine: give the normalisation layers trainable scale and shift (default: no); breaks scale invariance.
        frozen_head: keep the last layer at its random start (default; Hoffer, Hubara, Soudry 2018); a trained one breaks
            scale invariance.
        eps: what normalisation adds to the variance (default: 1e-5); > 0 makes invariance approximate.
    """

    norm: Norm
    num_classes: int
    affine: bool
    frozen_head: bool
    eps: float


DEFAULTS: Options = {"norm": "batch", "num_classes": 10, "affine": False, "frozen_head": True, "eps": 1e-5}


def convnet(depth: int = 6, width: int = 16, **options: Unpack[Options]) -> ConvNet:
    """Return a plain chain of convolution, norm, ReLU for 32x32 images (as VGG, Simonyan & Zisserman 2015, for CIFAR).

    Each convolution is scale-invariant on its own. With trainable affine parameters the body still has homogeneous layers, but
    its output has degree 1.

    Args:
        depth: number of convolutions: 3n for n in each of three stages.
        width: channels of the first stage; the second has twice, the third four times as many.
        options: see :class:`Options`.

    Raises:
        ExplrError: for a depth that is not 3n, or an unknown norm or option.

    >>> convnet(depth=3, width=4)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    if depth < 3 or depth % 3:
        raise ExplrError(f"depth={depth} must be 3n with n >= 1: 3, 6, 9, ...")
    return _make(lambda norm, num_classes: ConvNet(depth // 3, width, norm, num_classes), options)


def resnet(depth: int = 20, width: int = 16, **options: Unpack[Options]) -> ResNet:
    """Return a ResNet for 32x32 images with ReLU after the addition (He et al. 2016a, section 4.2).

    Where the shape changes the shortcut is a 1x1 convolution followed by a norm ("option B"), so that all paths that meet have
    degree 0. Each convolution is scale-invariant on its own.

    Args:
        depth: 6n + 2 for n blocks in each of three stages.
        width: channels of the first stage; the second has twice, the third four times as many.
        options: see :class:`Options`.

    Raises:
        ExplrError: for a depth that is not 6n + 2, or an unknown norm or option.

    >>> resnet(depth=8, width=4)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    return _make(lambda norm, num_classes: ResNet(_blocks(depth), width, norm, num_classes), options)


def preresnet32(**options: Unpack[Options]) -> PreResNet:
    """Return the source's network: :func:`preresnet` of depth 32, with 33 convolutions.

    >>> sum(isinstance(module, nn.Conv2d) for module in preresnet32().modules())
    33
    """
    return preresnet(32, **options)


def preresnet(depth: int = 32, width: int = 16, **options: Unpack[Options]) -> PreResNet:
    """Return a pre-activation ResNet for 32x32 images (He et al. 2016b), scale-invariant by default.

    The shortcut convolution takes the normalised, rectified input of its block, as in the paper. (On the raw stream, as in some
    widely copied code, a degree-1 path would meet a degree-2 path and the network would not be scale-invariant.)

    Args:
        depth: 6n + 2 for n blocks in each of three stages.
        width: channels of the first stage; the second has twice, the third four times as many.
        options: see :class:`Options`.

    Raises:
        ExplrError: for a depth that is not 6n + 2, or an unknown norm or option.

    >>> preresnet(depth=8, width=4)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    return _make(lambda norm, num_classes: PreResNet(_blocks(depth), width, norm, num_classes), options)


def densenet(depth: int = 22, growth: int = 12, **options: Unpack[Options]) -> DenseNet:
    """Return a DenseNet without bottlenecks for 32x32 images (Huang et al. 2017, section 4).

    Every layer appends ``growth`` channels to what it was given; between the three blocks a norm, ReLU and 1x1 convolution is
    followed by average pooling. All that is concatenated comes straight from a convolution, and so has degree 1.

    Args:
        depth: 3n + 4 for n layers in each of three blocks; the paper's is 40.
        growth: channels that each layer adds; the first convolution has twice as many.
        options: see :class:`Options`.

    Raises:
        ExplrError: for a depth that is not 3n + 4, or an unknown norm or option.

    >>> densenet(depth=7, growth=4)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    if depth < 7 or (depth - 4) % 3:
        raise ExplrError(f"depth={depth} must be 3n + 4 with n >= 1: 7, 10, 22, 40, 100, ...")
    return _make(lambda norm, num_classes: DenseNet((depth - 4) // 3, growth, norm, num_classes), options)


class ConvNet(nn.Module):
    """Chain of convolutions; ``blocks[i].conv1`` is convolution ``i``."""

    def __init__(self, layers: int, width: int, norm: NormLayer, num_classes: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[PlainBlock(*sizes, norm) for sizes in _stages(layers, 3, width)])
        self.head = nn.Linear(4 * width, num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, 3, H, W)`` to logits ``(N, num_classes)``."""
        return self.head(self.blocks(x).mean(dim=(2, 3)))


class PlainBlock(nn.Module):
    """Convolution, norm, ReLU."""

    def __init__(self, channels: int, out: int, stride: int, norm: NormLayer) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, out, stride)
        self.norm1 = norm(out)

    def forward(self, x: Tensor) -> Tensor:
        """Map features ``(N, channels, H, W)`` to ``(N, out, H / stride, W / stride)``."""
        return F.relu(self.norm1(self.conv1(x)))


class ResNet(nn.Module):
    """ResNet; ``blocks[i].conv1`` and ``blocks[i].conv2`` are the convolutions of residual block ``i``."""

    def __init__(self, blocks: int, width: int, norm: NormLayer, num_classes: int) -> None:
        super().__init__()
        self.stem = conv3x3(3, width)
        self.norm = norm(width)
        self.blocks = nn.Sequential(*[PostActivationBlock(*sizes, norm) for sizes in _stages(blocks, width, width)])
        self.head = nn.Linear(4 * width, num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, 3, H, W)`` to logits ``(N, num_classes)``."""
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.head(x.mean(dim=(2, 3)))


class PostActivationBlock(nn.Module):
    """Convolution, norm, ReLU, convolution, norm, added to the shortcut, ReLU; a shortcut that changes shape has its norm."""

    def __init__(self, channels: int, out: int, stride: int, norm: NormLayer) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, out, stride)
        self.norm1 = norm(out)
        self.conv2 = conv3x3(out, out)
        self.norm2 = norm(out)
        convolution = _shortcut(channels, out, stride)
        self.shortcut = None if convolution is None else nn.Sequential(convolution, norm(out))

    def forward(self, x: Tensor) -> Tensor:
        """Map features ``(N, channels, H, W)`` to ``(N, out, H / stride, W / stride)``."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return F.relu(shortcut + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class PreResNet(nn.Module):
    """Pre-activation ResNet; ``blocks[i].conv1`` and ``blocks[i].conv2`` are the convolutions of residual block ``i``."""

    def __init__(self, blocks: int, width: int, norm: NormLayer, num_classes: int) -> None:
        super().__init__()
        self.stem = conv3x3(3, width)
        self.blocks = nn.Sequential(*[PreActivationBlock(*sizes, norm) for sizes in _stages(blocks, width, width)])
        self.norm = norm(4 * width)
        self.head = nn.Linear(4 * width, num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, 3, H, W)`` to logits ``(N, num_classes)``."""
        x = F.relu(self.norm(self.blocks(self.stem(x))))
        return self.head(x.mean(dim=(2, 3)))


class PreActivationBlock(nn.Module):
    """Norm, ReLU, convolution, twice, added to the input; where the shape changes, to a 1x1 convolution of the first ReLU."""

    def __init__(self, channels: int, out: int, stride: int, norm: NormLayer) -> None:
        super().__init__()
        self.norm1 = norm(channels)
        self.conv1 = conv3x3(channels, out, stride)
        self.norm2 = norm(out)
        self.conv2 = conv3x3(out, out)
        self.shortcut = _shortcut(channels, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map features ``(N, channels, H, W)`` to ``(N, out, H / stride, W / stride)``."""
        h = F.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(h)
        return shortcut + self.conv2(F.relu(self.norm2(self.conv1(h))))


class DenseNet(nn.Module):
    """DenseNet; ``blocks[i].conv1`` is the convolution of dense layer or transition ``i``."""

    def __init__(self, layers: int, growth: int, norm: NormLayer, num_classes: int) -> None:
        super().__init__()
        channels = 2 * growth
        self.stem = conv3x3(3, channels)
        blocks: list[nn.Module] = []
        for stage in range(3):
            if stage:
                blocks.append(Transition(channels, norm))
            for _ in range(layers):
                blocks.append(DenseBlock(channels, growth, norm))
                channels += growth
        self.blocks = nn.Sequential(*blocks)
        self.norm = norm(channels)
        self.head = nn.Linear(channels, num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, 3, H, W)`` to logits ``(N, num_classes)``."""
        x = F.relu(self.norm(self.blocks(self.stem(x))))
        return self.head(x.mean(dim=(2, 3)))


class DenseBlock(nn.Module):
    """Norm, ReLU, convolution, appended to the input."""

    def __init__(self, channels: int, growth: int, norm: NormLayer) -> None:
        super().__init__()
        self.norm1 = norm(channels)
        self.conv1 = conv3x3(channels, growth)

    def forward(self, x: Tensor) -> Tensor:
        """Map features ``(N, channels, H, W)`` to ``(N, channels + growth, H, W)``."""
        return torch.cat([x, self.conv1(F.relu(self.norm1(x)))], dim=1)


class Transition(nn.Module):
    """Norm, ReLU, 1x1 convolution, average pooling."""

    def __init__(self, channels: int, norm: NormLayer) -> None:
        super().__init__()
        self.norm1 = norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map features ``(N, channels, H, W)`` to ``(N, channels, H / 2, W / 2)``."""
        return F.avg_pool2d(self.conv1(F.relu(self.norm1(x))), 2)


def conv3x3(channels: int, out: int, stride: int = 1) -> nn.Conv2d:
    """Return the 3x3 convolution without bias of which the networks here are made."""
    return nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)


def norm_layer(norm: Norm, affine: bool, eps: float) -> NormLayer:
    """Return a constructor channels -> normalisation layer for feature maps ``(N, C, H, W)``.

    Layer and instance normalisation are the two ends of group normalisation: one group, and one group a channel
    (Wu & He 2018). "group" takes groups of 4 channels, or of the largest smaller number that divides them all.

    Raises:
        ExplrError: for an unknown norm.
    """
    if norm == "batch":
        return lambda channels: nn.BatchNorm2d(channels, affine=affine, eps=eps)
    groups: dict[str, Callable[[int], int]] = {
        "layer": lambda channels: 1,
        "group": lambda channels: channels // next(size for size in (4, 3, 2, 1) if channels % size == 0),
        "instance": lambda channels: channels,
    }
    if norm not in groups:
        raise ExplrError(f"norm={norm!r} is unknown: use 'batch', 'layer', 'group' or 'instance'.")
    return lambda channels: nn.GroupNorm(groups[norm](channels), channels, affine=affine, eps=eps)


def _blocks(depth: int) -> int:
    if depth < 8 or (depth - 2) % 6:
        raise ExplrError(f"depth={depth} must be 6n + 2 with n >= 1: 8, 14, 20, 32, 44, 56, 110, ...")
    return (depth - 2) // 6


def _stages(blocks: int, channels: int, width: int) -> list[tuple[int, int, int]]:
    """Return (channels, out, stride) of each block in three stages, which double the width and halve the image."""
    sizes = []
    for stage in range(3):
        for block in range(blocks):
            out = width * 2**stage
            sizes.append((channels, out, 2 if stage and not block else 1))
            channels = out
    return sizes


def _shortcut(channels: int, out: int, stride: int) -> nn.Conv2d | None:
    return None if stride == 1 and channels == out else nn.Conv2d(channels, out, 1, stride=stride, bias=False)


_Net = TypeVar("_Net", bound=nn.Module)


def _make(network: Callable[[NormLayer, int], _Net], options: Options) -> _Net:
    """Build a network as the options say, initialise every weight as He et al. (2015) for ReLU, and freeze the head."""
    if unknown := options.keys() - DEFAULTS.keys():
        raise ExplrError(f"there is no option {', '.join(sorted(unknown))}: use {', '.join(DEFAULTS)}.")
    chosen: Options = {**DEFAULTS, **options}
    model = network(norm_layer(chosen["norm"], chosen["affine"], chosen["eps"]), chosen["num_classes"])
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    model.get_submodule("head").requires_grad_(not chosen["frozen_head"])
    return model
