"""The networks of the book, in configurations that are scale-invariant and in ones that are not.

A network is scale-invariant in its trainable parameters when every path to the output passes a normalisation without trainable
affine parameters, paths that meet carry the same power of the scale, and the last layer is frozen (Li & Arora 2020, Appendix C).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from explr.errors import ExplrError

Norm = Literal["batch", "layer", "group", "instance"]


def preresnet32(
    norm: Norm = "batch", num_classes: int = 10, affine: bool = False, frozen_head: bool = True, eps: float = 1e-5
) -> PreResNet:
    """Return the source's network: :func:`preresnet` of depth 32, with 33 convolutions.

    >>> sum(isinstance(module, nn.Conv2d) for module in preresnet32().modules())
    33
    """
    return preresnet(32, norm=norm, num_classes=num_classes, affine=affine, frozen_head=frozen_head, eps=eps)


def preresnet(
    depth: int = 32,
    width: int = 16,
    norm: Norm = "batch",
    num_classes: int = 10,
    affine: bool = False,
    frozen_head: bool = True,
    eps: float = 1e-5,
) -> PreResNet:
    """Return a pre-activation ResNet for 32x32 images (He et al. 2016b), scale-invariant by default.

    The shortcut convolution takes the normalised, rectified input of its block, as in the paper. (On the raw stream, as in some
    widely copied code, a degree-1 path would meet a degree-2 path and the network would not be scale-invariant.)

    Args:
        depth: 6n + 2 for n blocks in each of three stages.
        width: channels of the first stage; the second has twice, the third four times as many.
        norm: normalisation layer: "batch", "layer" (over channels and space), "group" or "instance".
        num_classes: outputs.
        affine: give the normalisation layers trainable scale and shift; breaks scale invariance.
        frozen_head: keep the last layer at its random start (Hoffer et al. 2018b); a trained one breaks scale invariance.
        eps: what normalisation adds to the variance; > 0 makes invariance approximate.

    Raises:
        ExplrError: for a depth that is not 6n + 2, or an unknown norm.

    >>> preresnet(depth=8, width=4)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    if depth < 8 or (depth - 2) % 6:
        raise ExplrError(f"depth={depth} must be 6n + 2 with n >= 1: 8, 14, 20, 32, 44, 56, 110, ...")
    return _finish(PreResNet((depth - 2) // 6, width, norm_layer(norm, affine, eps), num_classes), frozen_head)


class PreResNet(nn.Module):
    """Pre-activation ResNet; ``blocks[i].conv1`` and ``blocks[i].conv2`` are the convolutions of residual block ``i``."""

    def __init__(self, blocks: int, width: int, norm: Callable[[int], nn.Module], num_classes: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        self.stem = conv3x3(3, width)
        layers = []
        channels = width
        for stage, out in enumerate(widths):
            for block in range(blocks):
                layers.append(PreActivationBlock(channels, out, 2 if stage and not block else 1, norm))
                channels = out
        self.blocks = nn.Sequential(*layers)
        self.norm = norm(channels)
        self.head = nn.Linear(channels, num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, 3, H, W)`` to logits ``(N, num_classes)``."""
        x = F.relu(self.norm(self.blocks(self.stem(x))))
        return self.head(x.mean(dim=(2, 3)))


class PreActivationBlock(nn.Module):
    """Norm, ReLU, convolution, twice, added to the input; where the shape changes, to a 1x1 convolution of the first ReLU."""

    def __init__(self, channels: int, out: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norm1 = norm(channels)
        self.conv1 = conv3x3(channels, out, stride)
        self.norm2 = norm(out)
        self.conv2 = conv3x3(out, out)
        changes = stride != 1 or channels != out
        self.shortcut = nn.Conv2d(channels, out, 1, stride=stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """Map features ``(N, channels, H, W)`` to ``(N, out, H / stride, W / stride)``."""
        h = F.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(h)
        return shortcut + self.conv2(F.relu(self.norm2(self.conv1(h))))


def conv3x3(channels: int, out: int, stride: int = 1) -> nn.Conv2d:
    """Return the 3x3 convolution without bias of which the networks here are made."""
    return nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)


def norm_layer(norm: Norm, affine: bool, eps: float) -> Callable[[int], nn.Module]:
    """Return a constructor channels -> normalisation layer for feature maps ``(N, C, H, W)``.

    Layer and instance normalisation are the two ends of group normalisation: one group, and one group a channel
    (Wu & He 2018). "group" takes groups of 4 channels.

    Raises:
        ExplrError: for an unknown norm.
    """
    if norm == "batch":
        return lambda channels: nn.BatchNorm2d(channels, affine=affine, eps=eps)
    groups: dict[str, Callable[[int], int]] = {
        "layer": lambda channels: 1,
        "group": lambda channels: max(channels // 4, 1),
        "instance": lambda channels: channels,
    }
    if norm not in groups:
        raise ExplrError(f"norm={norm!r} is unknown: use 'batch', 'layer', 'group' or 'instance'.")
    return lambda channels: nn.GroupNorm(groups[norm](channels), channels, affine=affine, eps=eps)


def _finish(model: PreResNet, frozen_head: bool) -> PreResNet:
    """Initialise every weight as He et al. (2015) for ReLU, and freeze the head."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    model.head.requires_grad_(not frozen_head)
    return model
