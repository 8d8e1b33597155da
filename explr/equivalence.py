r"""The exact conversion between weight decay and an exponentially increasing learning rate.

This module is the theorem as code (Li & Arora 2020, Theorems 1 and 2), for any learning-rate schedule. It knows numbers
only: no networks, no torch. Notation: learning rate η, weight decay λ, momentum γ, iteration t. All logarithms are natural,
all rates are per step (one optimizer update).

SGD with weight decay on a scale-invariant loss and SGD without it compute the same functions when the second run uses
η̃_t = η_t · P_t · P_{t+1}, where P_t is the factor between the two weight vectors. Two numbers carry the recursion: x_t, the
share of the weights that decay removes at step t, and κ_t, the decay coefficient that the momentum buffer still carries of
earlier steps:

    κ_0 = 0,    x_t = η_t (λ + γ κ_t),    κ_{t+1} = (λ + γ κ_t) / (1 - x_t),    P_0 = 1,    P_{t+1} = P_t / (1 - x_t).

Every term is positive, so nothing cancels. In the paper's notation α_t = 1 - x_t. The invariant behind it: the two momentum
buffers satisfy v_t = P_t ṽ_t + κ_t θ_t at every step. It holds at the start for *any* common buffer, so a run may be converted
while it is under way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from explr.errors import ExplrError

FloatArray = npt.NDArray[np.float64]
Rates = Sequence[float] | npt.NDArray[np.floating]

# numpy has no bfloat16, and dtypes may come from torch, which this module does not import.
_LARGEST = {
    "float16": 65504.0,
    "bfloat16": 3.3895313892515355e38,
    "float32": float(np.finfo(np.float32).max),
    "float64": float(np.finfo(np.float64).max),
}


@dataclass(frozen=True, eq=False)
class ExpSchedule:
    """A learning-rate schedule without weight decay, and the growth of the weights that goes with it.

    Attributes:
        log_lr: shape ``(T,)``, natural log of the learning rate η̃_t of each step.
        log_scale: shape ``(T + 1,)``, natural log of P_t, the factor between the weights of this run and those of the run
            with weight decay, before each step and after the last.

    >>> schedule = convert([0.1] * 391, weight_decay=5e-4, momentum=0.9)
    >>> schedule.log_lr.shape, schedule.log_scale.shape
    ((391,), (392,))
    """

    log_lr: FloatArray
    log_scale: FloatArray

    def __len__(self) -> int:
        return len(self.log_lr)

    @property
    def lr(self) -> FloatArray:
        """The learning rates themselves, shape ``(T,)``.

        Raises:
            ExplrError: if one is too large for float64 (``log_lr`` always holds them all).
        """
        step = self.first_overflow("float64")
        if step is not None:
            raise ExplrError(
                f"the learning rate of step {step} is exp({self.log_lr[step]:.6g}), too large for float64. "
                "Use log_lr, or train with ExpLR(..., model=model, renormalize=True), which keeps rates bounded."
            )
        return np.exp(self.log_lr)

    def first_overflow(self, dtype: object) -> int | None:
        """Return the first step whose learning rate ``dtype`` cannot hold, or None.

        Args:
            dtype: ``torch.float32``, ``numpy.float16``, ``"bfloat16"``, ...; a floating-point type or its name.

        Raises:
            ExplrError: if ``dtype`` is not one of float16, bfloat16, float32 and float64.

        >>> convert([0.1] * 391 * 300, weight_decay=5e-4, momentum=0.9).first_overflow("float32")
        90600
        """
        name = dtype.__name__ if isinstance(dtype, type) else str(dtype).removeprefix("torch.")
        if name not in _LARGEST:
            raise ExplrError(f"unknown dtype {dtype!r}: use one of {', '.join(_LARGEST)}.")
        over = np.flatnonzero(self.log_lr > math.log(_LARGEST[name]))
        return int(over[0]) if over.size else None


def convert(lrs: Rates, weight_decay: float | Rates, momentum: float | Rates = 0.0) -> ExpSchedule:
    r"""Convert SGD with weight decay into the equivalent schedule without it, exactly.

    Any schedule converts: η_t, and if need be λ_t and γ_t, may change at every step. The run starts as PyTorch's SGD does,
    with an empty momentum buffer; a run that is already under way, with any momentum buffer, converts by the same numbers.
    Theorem 1 of Li & Arora (2020) is the fixed point of the recursion at constant learning rate.

    Args:
        lrs: learning rates η_t > 0, one per step, length T ≥ 1.
        weight_decay: L2 coefficient λ ≥ 0 as :class:`torch.optim.SGD` takes it; one number or one per step.
        momentum: heavy-ball factor 0 ≤ γ < 1; one number, or one per step (then all 0 or all positive).

    Raises:
        ExplrError: for values outside these ranges, or when no positive schedule exists at some step.

    >>> schedule = convert([0.1, 0.1, 0.01], weight_decay=5e-4, momentum=0.9)
    >>> [round(float(lr), 8) for lr in schedule.lr]
    [0.100005, 0.1000195, 0.01000304]
    """
    eta = _rates("lrs", lrs)
    lam = _per_step("weight_decay", weight_decay, len(eta))
    gamma = _per_step("momentum", momentum, len(eta))
    _check_lr(eta)
    _check_weight_decay(lam)
    _check_momentum(gamma)
    if gamma.any() and not gamma.all():
        raise ExplrError(
            f"momentum=0.0 at step {np.flatnonzero(gamma == 0)[0]}, but not at every step: torch's SGD neither reads nor "
            "updates its momentum buffer at momentum 0, so nothing exact is known of the steps after it. "
            "Use a small positive momentum there, such as 1e-9."
        )
    shares = np.empty(len(eta))
    carried = 0.0
    for step, (lr, decay, mu) in enumerate(zip(eta.tolist(), lam.tolist(), gamma.tolist(), strict=True)):
        shares[step], carried = advance(carried, lr, decay, mu, step)
    return _schedule(eta, shares)


def advance(carried: float, lr: float, weight_decay: float, momentum: float, step: int) -> tuple[float, float]:
    r"""Advance the recursion by one step: return (x_t, κ_{t+1}) from κ_t, η_t, λ_t and γ_t. Arguments are not checked.

    Start with ``carried=0``. The weights of the run without decay grow by ``1 / (1 - x_t)`` relative to those with it.

    Args:
        carried: κ_t ≥ 0, the decay coefficient that the momentum buffer carries.
        lr: η_t ≥ 0, per step.
        weight_decay: λ_t ≥ 0.
        momentum: γ_t in [0, 1).
        step: t, for the message.

    Raises:
        ExplrError: if x_t ≥ 1, where weight decay would flip the sign of the weights and no positive rate does the same.

    >>> advance(0.0, lr=0.1, weight_decay=5e-4, momentum=0.9, step=0)
    (5e-05, 0.0005000250012500625)
    """
    decay = weight_decay + momentum * carried
    share = lr * decay
    if share < 1.0:
        return share, decay / (1.0 - share)
    raise ExplrError(
        f"no exponential schedule stands for step {step}: lr={lr:.6g} with weight_decay={weight_decay:.6g}, "
        f"momentum={momentum:.6g} takes away all of the weights (a share of {share:.6g}; it must stay below 1). "
        f"At this step lr must be below {1.0 / decay:.6g}; at a constant rate lr * weight_decay must not exceed "
        f"(1 - sqrt(momentum))**2 = {_largest_decay(momentum):.6g}. Lower lr or weight_decay."
    )


def texp(phase_lrs: Rates, phase_steps: Sequence[int], weight_decay: float, momentum: float = 0.0) -> ExpSchedule:
    r"""Return the Tapered Exponential schedule (TEXP), the closed form of Theorem 2 for a step-decay schedule.

    Inside phase I the rate grows by α_I⁻² a step; on entering it the rate is multiplied by (η_I / η_{I-1}) / (α_I α_{I-1}).
    TEXP takes the fixed point of :func:`convert`'s recursion from the first step, so it is not exact when the momentum buffer
    starts empty: for η = 0.1, λ = 5e-4, γ = 0.9 its log rate ends 0.0091 above the exact one.

    Args:
        phase_lrs: η_I > 0, one per phase.
        phase_steps: length of each phase in steps, each ≥ 1.
        weight_decay: λ ≥ 0.
        momentum: γ in [0, 1).

    Raises:
        ExplrError: for values outside these ranges, or if a phase has λη > (1 - √γ)².

    >>> schedule = texp([0.1, 0.01], [2, 2], weight_decay=5e-4, momentum=0.9)
    >>> [round(float(lr), 8) for lr in schedule.lr]
    [0.10005025, 0.10015083, 0.01002062, 0.01002162]
    """
    eta = _rates("phase_lrs", phase_lrs)
    _check_lr(eta)
    steps = np.asarray(phase_steps)
    if steps.shape != eta.shape or steps.dtype.kind not in "iu" or (steps < 1).any():
        raise ExplrError(
            f"phase_steps={phase_steps} must hold one whole number of steps >= 1 for each of the {len(eta)} phase_lrs."
        )
    shares = [_steady_share(lr, weight_decay, momentum) for lr in eta.tolist()]
    return _schedule(np.repeat(eta, steps), np.repeat(shares, steps))


def characteristic_root(lr: float, weight_decay: float, momentum: float = 0.0) -> float:
    r"""Return α, the factor by which one step of weight decay shrinks the weights at a steady state.

    It is the larger root of :math:`x^2 - (1 + \gamma - \lambda\eta)x + \gamma = 0` (Li & Arora 2020, Theorem 1): in the
    equivalent run without weight decay the learning rate grows by ``characteristic_root(...) ** -2`` every step.

    Args:
        lr: learning rate η > 0, per step.
        weight_decay: L2 coefficient λ ≥ 0, as :class:`torch.optim.SGD` takes it.
        momentum: heavy-ball factor γ, 0 ≤ γ < 1.

    Raises:
        ExplrError: for values outside these ranges, or if ``lr * weight_decay`` exceeds (1 - √γ)², where no real root exists.

    >>> characteristic_root(0.1, 5e-4, momentum=0.9)
    0.9994977283678919
    """
    return 1.0 - _steady_share(lr, weight_decay, momentum)


def growth_rate(lr: float, weight_decay: float, momentum: float = 0.0, *, steps: int = 1) -> float:
    r"""Return the factor α^(-2·steps) by which the equivalent learning rate grows over ``steps`` steps.

    Li & Arora 2020, Theorem 1. With ``steps`` the number of steps in an epoch, the growth per epoch.

    Args:
        lr: learning rate η > 0, per step.
        weight_decay: L2 coefficient λ ≥ 0.
        momentum: heavy-ball factor γ, 0 ≤ γ < 1.
        steps: number of steps, ≥ 0.

    Raises:
        ExplrError: as :func:`characteristic_root`; and if the factor is too large for float64.

    >>> round(growth_rate(0.1, 5e-4, momentum=0.9, steps=391), 12)
    1.481233356287
    """
    if not 0 <= steps < math.inf:
        raise ExplrError(f"steps={steps} must be finite and not negative.")
    log_growth = -2.0 * steps * math.log1p(-_steady_share(lr, weight_decay, momentum))
    try:
        return math.exp(log_growth)
    except OverflowError:
        raise ExplrError(
            f"the growth over steps={steps} is exp({log_growth:.6g}), too large for float64. "
            "Use fewer steps, or convert(...).log_lr."
        ) from None


def weight_decay_for(growth: float, lr: float, momentum: float = 0.0) -> float:
    r"""Return the weight decay λ that a constant growth of the learning rate stands for: the inverse of :func:`growth_rate`.

    Args:
        growth: factor per step, ≥ 1, by which the learning rate grows (1 + a in the source's notation).
        lr: initial learning rate η > 0.
        momentum: heavy-ball factor γ, 0 ≤ γ < 1.

    Raises:
        ExplrError: for values outside these ranges, or if ``growth`` exceeds 1/γ, the most that weight decay can stand for.

    >>> round(weight_decay_for(growth_rate(0.1, 5e-4, 0.9), lr=0.1, momentum=0.9), 12)
    0.0005
    """
    growth, lr, momentum = _float("growth", growth), _float("lr", lr), _float("momentum", momentum)
    _check_lr(lr)
    _check_momentum(momentum)
    if not 1.0 <= growth < math.inf:
        raise ExplrError(f"growth={growth} must be a finite factor per step, >= 1 (1.001 for a tenth of a percent a step).")
    share = -math.expm1(-0.5 * math.log1p(growth - 1.0))
    if growth * momentum > 1.0:
        raise ExplrError(
            f"no weight decay stands for growth={growth} per step at momentum={momentum}: the most is "
            f"1/momentum = {1.0 / momentum:.6g}. Is this growth per epoch? Take growth ** (1 / steps_per_epoch)."
        )
    return share * (1.0 - momentum - share) / (1.0 - share) / lr


def _steady_share(lr: float, weight_decay: float, momentum: float) -> float:
    """Return x = 1 - α, the fixed point of advance; written without cancellation, so that 1 - x loses nothing."""
    lr, weight_decay, momentum = _float("lr", lr), _float("weight_decay", weight_decay), _float("momentum", momentum)
    _check_lr(lr)
    _check_weight_decay(weight_decay)
    _check_momentum(momentum)
    decay = lr * weight_decay
    bound = _largest_decay(momentum)
    if decay > bound or decay >= 1.0:
        raise ExplrError(
            f"no exponential schedule stands for lr={lr}, weight_decay={weight_decay}, momentum={momentum}: "
            f"lr * weight_decay = {decay:.6g} exceeds (1 - sqrt(momentum))**2 = {bound:.6g}. "
            f"Lower lr or weight_decay{_smaller_momentum(decay)}."
        )
    root = math.sqrt((bound - decay) * ((1.0 + math.sqrt(momentum)) ** 2 - decay))
    return 2.0 * decay / (1.0 - momentum + decay + root)


def _largest_decay(momentum: float) -> float:
    return ((1.0 - momentum) / (1.0 + math.sqrt(momentum))) ** 2  # (1 - sqrt(momentum))**2 without cancellation


def _smaller_momentum(decay: float) -> str:
    """Name the momentum at which ``decay`` would convert, rounded down so that the advice works."""
    if decay >= 1.0:
        return ""
    return f", or use momentum <= {math.floor(1e3 * (1.0 - math.sqrt(decay)) ** 2) / 1e3:g}"


def _schedule(eta: FloatArray, shares: npt.ArrayLike) -> ExpSchedule:
    # A running sum over 10^6 steps in float64 would cost digits of the learning rate, which is its exponential.
    growth = np.cumsum(-np.log1p(-np.asarray(shares)), dtype=np.longdouble)
    log_scale = np.concatenate([[0.0], growth.astype(np.float64)])
    return ExpSchedule(log_lr=np.log(eta) + log_scale[:-1] + log_scale[1:], log_scale=log_scale)


def _rates(name: str, values: Rates) -> FloatArray:
    array = _floats(name, values)
    if array.ndim != 1 or array.size == 0:
        raise ExplrError(f"{name} must be a sequence of at least one number, one per step; got shape {array.shape}.")
    return array


def _floats(name: str, values: Any) -> FloatArray:
    """Return numbers in whatever form, torch tensors and iterators among them, as a float64 array."""
    try:
        if hasattr(values, "detach"):  # a tensor of any dtype and device, without importing torch
            values = values.detach().cpu().double().numpy()
        elif hasattr(values, "__next__"):
            values = list(values)
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ExplrError(f"{name}={values!r} must be numbers.") from None


def _float(name: str, value: Any) -> float:
    array = _floats(name, value)
    if array.size != 1:
        raise ExplrError(f"{name} must be one number; got shape {array.shape}.")
    return float(array.reshape(()))


def _per_step(name: str, value: float | Rates, steps: int) -> FloatArray:
    array = _floats(name, value)
    if array.ndim == 0:
        return np.full(steps, float(array))
    if array.shape != (steps,):
        raise ExplrError(f"{name} must be one number or one per step: got shape {array.shape} for {steps} steps.")
    return array


def _check_lr(lr: float | FloatArray) -> None:
    _check(
        "lr",
        lr,
        lambda v: (v > 0) & (v < np.inf),
        "must be positive and finite; where a schedule reaches 0, stop above it",
    )


def _check_weight_decay(weight_decay: float | FloatArray) -> None:
    _check("weight_decay", weight_decay, lambda v: (v >= 0) & (v < np.inf), "must be finite and not negative")


def _check_momentum(momentum: float | FloatArray) -> None:
    _check("momentum", momentum, lambda v: (v >= 0) & (v < 1), "must lie in [0, 1); 0.9 is usual")


def _check(name: str, values: float | FloatArray, accept: Callable[[FloatArray], npt.NDArray[np.bool_]], rule: str) -> None:
    array = np.asarray(values, dtype=np.float64)
    bad = np.flatnonzero(~accept(np.atleast_1d(array)))
    if bad.size:
        where = f" at step {bad[0]}" if array.ndim else ""
        raise ExplrError(f"{name}={np.atleast_1d(array)[bad[0]]}{where}: {name} {rule}.")
