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
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from explr.checks import (
    FloatArray,
    Rates,
    check,
    check_lr,
    check_momentum,
    check_weight_decay,
    one_float,
    per_step,
    rates,
    whole,
)
from explr.errors import ExplrError
from explr.recursions import AdamW, Family, HeavyBall, Nesterov, heavy_ball_bound, nesterov_bound, no_twin

# numpy has no bfloat16, and dtypes may come from torch, which this module does not import.
_LARGEST = {
    "float16": 65504.0,
    "bfloat16": 3.3895313892515355e38,
    "float32": float(np.finfo(np.float32).max),
    "float64": float(np.finfo(np.float64).max),
}


@dataclass(frozen=True, eq=False)
class Schedule:
    """What the schedules of all optimizers have: rates as logarithms, and the growth of the weights."""

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


@dataclass(frozen=True, eq=False)
class ExpSchedule(Schedule):
    """A learning-rate schedule of SGD without weight decay, and the growth of the weights that goes with it.

    Attributes:
        log_lr: shape ``(T,)``, natural log of the learning rate η̃_t of each step.
        log_scale: shape ``(T + 1,)``, natural log of P_t, the factor between the weights of this run and those of the run
            with weight decay, before each step and after the last.
        momentum: shape ``(T,)``, of each step; with heavy-ball momentum what :func:`convert` was given.
        dampening: shape ``(T,)``, of each step; negative with Nesterov momentum, which torch takes in a parameter group, though
            not in the constructor.

    >>> schedule = convert([0.1] * 391, weight_decay=5e-4, momentum=0.9)
    >>> schedule.log_lr.shape, schedule.log_scale.shape
    ((391,), (392,))
    """

    momentum: FloatArray = field(default_factory=lambda: np.zeros(0))
    dampening: FloatArray = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True, eq=False)
class AdamWSchedule(Schedule):
    """The hyper-parameters of AdamW without weight decay, and the growth of the weights that goes with them.

    Attributes:
        log_lr: shape ``(T,)``, natural log of the learning rate η̃_t of each step.
        log_scale: shape ``(T + 1,)``, natural log of P_t, before each step and after the last.
        betas: shape ``(T, 2)``, β̃₁ and β̃₂ of each step.
        log_eps: shape ``(T,)``, natural log of ε̃ of each step.
    """

    betas: FloatArray
    log_eps: FloatArray


def convert(
    lrs: Rates,
    weight_decay: float | Rates,
    momentum: float | Rates = 0.0,
    *,
    nesterov: bool = False,
    dampening: float | Rates = 0.0,
) -> ExpSchedule:
    r"""Convert SGD with weight decay into the equivalent schedule without it, exactly.

    Any schedule converts: η_t, and if need be λ_t and γ_t, may change at every step. The run starts as PyTorch's SGD does,
    with an empty momentum buffer. With heavy-ball momentum, damped or not, only the rate changes, and Theorem 1 of Li & Arora
    (2020) is the fixed point of the recursion at constant rate. With Nesterov momentum the twin has a momentum and a dampening
    of its own at every step, near γ and 0.

    Args:
        lrs: learning rates η_t > 0, one per step, length T ≥ 1.
        weight_decay: L2 coefficient λ ≥ 0 as :class:`torch.optim.SGD` takes it; one number or one per step.
        momentum: factor 0 ≤ γ < 1; one number, or one per step (then all 0 or all positive).
        nesterov: whether the momentum is Nesterov's; then it is positive, and dampening 0.
        dampening: τ = 1 - dampening > 0 is the weight of a new gradient in the buffer; one number or one per step.

    Raises:
        ExplrError: for values outside these ranges, or when no positive schedule exists at some step.

    >>> schedule = convert([0.1, 0.1, 0.01], weight_decay=5e-4, momentum=0.9)
    >>> [round(float(lr), 8) for lr in schedule.lr]
    [0.100005, 0.1000195, 0.01000304]
    >>> [round(float(momentum), 9) for momentum in convert([0.1] * 3, 5e-4, 0.9, nesterov=True).momentum]
    [0.900085508, 0.900038481, 0.900013149]
    """
    eta = rates("lrs", lrs)
    lam = per_step("weight_decay", weight_decay, len(eta))
    gamma = per_step("momentum", momentum, len(eta))
    damping = per_step("dampening", dampening, len(eta))
    check_lr(eta)
    check_weight_decay(lam)
    check_momentum(gamma)
    check("dampening", damping, lambda v: (v > -np.inf) & (v < 1), "must be finite and below 1; 0 is usual")
    if gamma.any() and not gamma.all():
        raise ExplrError(
            f"momentum=0.0 at step {np.flatnonzero(gamma == 0)[0]}, but not at every step: torch's SGD neither reads nor "
            "updates its momentum buffer at momentum 0, so nothing exact is known of the steps after it. "
            "Use a small positive momentum there, such as 1e-9."
        )
    if nesterov and (damping.any() or not gamma.any()):
        raise ExplrError("nesterov=True needs a positive momentum and dampening=0, as in torch.optim.SGD.")
    log_lr, log_scale, settings = _run(Nesterov(), eta, lam, gamma) if nesterov else _run(HeavyBall(), eta, lam, gamma, damping)
    return ExpSchedule(log_lr, log_scale, momentum=settings["momentum"], dampening=settings["dampening"])


def convert_adamw(
    lrs: Rates,
    weight_decay: float | Rates,
    betas: tuple[float | Rates, float | Rates] = (0.9, 0.999),
    eps: float = 1e-8,
) -> AdamWSchedule:
    r"""Convert AdamW with (decoupled) weight decay into the equivalent AdamW without it, exactly.

    Decoupled weight decay is an exponential rate and a shorter memory: the rate grows by 1/(1 - λη) a step, and both betas
    shrink, at a steady state to β₁α and β₂α² with α = 1 - λη. The run starts as PyTorch's does, with empty averages. It always
    converts, as long as λη < 1.

    Args:
        lrs: learning rates η_t > 0, one per step, length T ≥ 1.
        weight_decay: λ ≥ 0 as :class:`torch.optim.AdamW` takes it; one number or one per step.
        betas: β₁ and β₂ in [0, 1); each one number or one per step.
        eps: what is added to the root of the averaged squares, ≥ 0.

    Raises:
        ExplrError: for values outside these ranges, or where λη ≥ 1.

    >>> twin = convert_adamw([1e-3] * 3, weight_decay=0.1)
    >>> [round(float(lr), 9) for lr in twin.lr]
    [0.0010001, 0.001000195, 0.001000283]
    >>> [round(beta, 9) for beta in twin.betas[2].tolist()]
    [0.899982898, 0.998999601]
    """
    eta = rates("lrs", lrs)
    lam = per_step("weight_decay", weight_decay, len(eta))
    if not (isinstance(betas, Sequence | np.ndarray) and len(betas) == 2):
        raise ExplrError(f"betas={betas!r} must be two: (0.9, 0.999) are usual.")
    beta1, beta2 = (per_step(f"betas[{index}]", beta, len(eta)) for index, beta in enumerate(betas))
    check_lr(eta)
    check_weight_decay(lam)
    for index, beta in enumerate((beta1, beta2)):
        check(f"betas[{index}]", beta, lambda v: (v >= 0) & (v < 1), "must lie in [0, 1)")
    epsilon = one_float("eps", eps)
    check("eps", epsilon, lambda v: (v >= 0) & (v < np.inf), "must be finite and not negative")
    log_lr, log_scale, settings = _run(AdamW(), eta, lam, beta1, beta2, np.full(len(eta), epsilon))
    log_eps = (math.log(epsilon) if epsilon else -math.inf) + settings["log_eps_factor"] - log_scale[:-1]
    return AdamWSchedule(log_lr, log_scale, np.stack([settings["beta1"], settings["beta2"]], axis=1), log_eps)


def _run(family: Family, *columns: FloatArray) -> tuple[FloatArray, FloatArray, dict[str, FloatArray]]:
    """Run a recursion over all steps: return log rates, log scales and the twin's other settings."""
    memory = family.start()
    advance = family.advance
    shares, memories = [], [memory]
    for step, settings in enumerate(np.stack(columns, axis=1).tolist()):
        share, memory = advance(memory, *settings)
        if not share < 1.0:
            raise no_twin(family, share, tuple(settings), step)
        shares.append(share)
        memories.append(memory)
    states = np.array(memories).T
    log_scale = _log_scale(shares)
    settings_of_twin = family.settings(states[:, :-1], states[:, 1:], *columns)
    log_lr = np.log(columns[0]) + settings_of_twin.pop("log_factor") + log_scale[1:]
    return log_lr + log_scale[:-1] if family.lr_power == 2 else log_lr, log_scale, settings_of_twin


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
    settings = (lr, weight_decay, momentum, 0.0)
    share, (carried, _) = HeavyBall().advance((carried, 0.0), *settings)
    if not share < 1.0:
        raise no_twin(HeavyBall(), share, settings, step)
    return share, carried


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
    eta = rates("phase_lrs", phase_lrs)
    check_lr(eta)
    if not isinstance(phase_steps, Sequence | np.ndarray) or len(phase_steps) != len(eta):
        raise ExplrError(f"phase_steps={phase_steps!r} must hold one number of steps for each of the {len(eta)} phase_lrs.")
    steps = [whole(f"phase_steps[{phase}]", count) for phase, count in enumerate(phase_steps)]
    momentum = one_float("momentum", momentum)
    shares = [_steady_share(lr, weight_decay, momentum) for lr in eta.tolist()]
    log_scale = _log_scale(np.repeat(shares, steps))
    log_lr = np.log(np.repeat(eta, steps)) + log_scale[:-1] + log_scale[1:]
    return ExpSchedule(log_lr, log_scale, momentum=np.full(len(log_lr), momentum), dampening=np.zeros(len(log_lr)))


def characteristic_root(lr: float, weight_decay: float, momentum: float = 0.0, *, nesterov: bool = False) -> float:
    r"""Return α, the factor by which one step of weight decay shrinks the weights at a steady state.

    It is the larger root of :math:`x^2 - (1 + \gamma - \lambda\eta)x + \gamma = 0` (Li & Arora 2020, Theorem 1), with Nesterov
    momentum that of :math:`x^2 - (1 + \gamma)(1 - \lambda\eta)x` :math:`{}+ \gamma(1 - \lambda\eta) = 0`. In the equivalent
    run without weight decay the learning rate grows by ``characteristic_root(...) ** -2`` every step.

    Args:
        lr: learning rate η > 0, per step.
        weight_decay: L2 coefficient λ ≥ 0, as :class:`torch.optim.SGD` takes it.
        momentum: factor γ, 0 ≤ γ < 1.
        nesterov: whether the momentum is Nesterov's. Its twin has momentum γ(1 - λη) and dampening 1 - α⁻² at a steady state.

    Raises:
        ExplrError: for values outside these ranges, or if ``lr * weight_decay`` exceeds (1 - √γ)², with Nesterov momentum
            ((1 - γ)/(1 + γ))²: no real root exists there.

    >>> characteristic_root(0.1, 5e-4, momentum=0.9)
    0.9994977283678919
    """
    return 1.0 - _steady_share(lr, weight_decay, momentum, nesterov=nesterov)


def growth_rate(lr: float, weight_decay: float, momentum: float = 0.0, *, steps: float = 1, nesterov: bool = False) -> float:
    r"""Return the factor α^(-2·steps) by which the equivalent learning rate grows over ``steps`` steps.

    Li & Arora 2020, Theorem 1. With ``steps`` the number of steps in an epoch, the growth per epoch.

    Args:
        lr: learning rate η > 0, per step.
        weight_decay: L2 coefficient λ ≥ 0.
        momentum: factor γ, 0 ≤ γ < 1.
        steps: number of steps, ≥ 0.
        nesterov: whether the momentum is Nesterov's.

    Raises:
        ExplrError: as :func:`characteristic_root`; and if the factor is too large for float64.

    >>> round(growth_rate(0.1, 5e-4, momentum=0.9, steps=391), 12)
    1.481233356287
    """
    steps = one_float("steps", steps)
    if not 0 <= steps < math.inf:
        raise ExplrError(f"steps={steps} must be finite and not negative.")
    log_growth = steps * (-2.0 * math.log1p(-_steady_share(lr, weight_decay, momentum, nesterov=nesterov)))
    if log_growth > math.log(_LARGEST["float64"]):
        raise ExplrError(
            f"the growth over steps={steps} is exp({log_growth:.6g}), too large for float64. "
            "Use fewer steps, or convert(...).log_lr."
        )
    return math.exp(log_growth)


def weight_decay_for(growth: float, lr: float, momentum: float = 0.0) -> float:
    r"""Return the weight decay λ that is equivalent to a constant growth of the learning rate: inverts :func:`growth_rate`.

    Args:
        growth: factor per step, ≥ 1, by which the learning rate grows (1 + a in the source's notation).
        lr: initial learning rate η > 0.
        momentum: heavy-ball factor γ, 0 ≤ γ < 1.

    Raises:
        ExplrError: for values outside these ranges, or if ``growth`` exceeds 1/γ, the most that any weight decay gives.

    >>> round(weight_decay_for(growth_rate(0.1, 5e-4, 0.9), lr=0.1, momentum=0.9), 12)
    0.0005
    """
    growth, lr, momentum = one_float("growth", growth), one_float("lr", lr), one_float("momentum", momentum)
    check_lr(lr)
    check_momentum(momentum)
    if not 1.0 <= growth < math.inf:
        raise ExplrError(f"growth={growth} must be a finite factor per step, >= 1 (1.001 for a tenth of a percent a step).")
    left = -0.5 * math.log1p(growth - 1.0)  # log of what decay leaves of the weights: not 1 minus the share, which may be all
    if growth * momentum > 1.0:
        raise ExplrError(
            f"no weight decay is equivalent to growth={growth} per step at momentum={momentum}: the most is "
            f"1/momentum = {1.0 / momentum:.6g}. Is this growth per epoch? Take growth ** (1 / steps_per_epoch)."
        )
    decay = -math.expm1(left) * (1.0 - momentum * math.exp(-left)) / lr
    if decay == math.inf:
        raise ExplrError(f"at lr={lr} the weight decay of growth={growth} is too large for float64: use a larger lr.")
    return decay


class AdamWSteadyState(NamedTuple):
    """What the twin of AdamW settles to at constant hyper-parameters: see :func:`adamw_steady_state`."""

    growth: float
    betas: tuple[float, float]
    factor: float


def adamw_steady_state(lr: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.999)) -> AdamWSteadyState:
    r"""Return what the twin of AdamW settles to at constant rate, with α = 1 - λη.

    Args:
        lr: learning rate η > 0, per step.
        weight_decay: λ ≥ 0, decoupled, as :class:`torch.optim.AdamW` takes it.
        betas: β₁ and β₂ in [0, 1).

    Returns:
        ``growth`` of the rate per step, 1/α; ``betas`` (β₁α, β₂α²): an average of squares that remembered 1/(1 - β₂) steps now
        remembers 1/(1 - β₂α²); and the constant ``factor`` by which the rate exceeds η P,
        (1 - β₁)/(1 - β₁α) · √((1 - β₂α²)/(1 - β₂)).

    Raises:
        ExplrError: as :func:`convert_adamw`.

    >>> state = adamw_steady_state(1e-3, 0.1)
    >>> [round(beta, 12) for beta in state.betas], round(state.factor, 12)
    ([0.89991, 0.99880020999], 1.094364336031)
    """
    lr, weight_decay = one_float("lr", lr), one_float("weight_decay", weight_decay)
    convert_adamw([lr], weight_decay, betas)  # for its errors
    beta1, beta2 = (one_float("betas", beta) for beta in betas)
    decay = lr * weight_decay
    # Without cancellation: 1 - β α = (1 - β) + β (1 - α).
    shorter1, shorter2 = (1.0 - beta1) + beta1 * decay, (1.0 - beta2) + beta2 * decay * (2.0 - decay)
    factor = (1.0 - beta1) / shorter1 * math.sqrt(shorter2 / (1.0 - beta2))
    left = 1.0 - decay
    return AdamWSteadyState(1.0 / left, (beta1 * left, beta2 * left * left), factor)


def _steady_share(lr: float, weight_decay: float, momentum: float, *, nesterov: bool = False) -> float:
    """Return x = 1 - α, the fixed point of the recursion; written without cancellation, so that 1 - x loses nothing."""
    lr, weight_decay, momentum = one_float("lr", lr), one_float("weight_decay", weight_decay), one_float("momentum", momentum)
    check_lr(lr)
    check_weight_decay(weight_decay)
    check_momentum(momentum)
    decay = lr * weight_decay
    bound = nesterov_bound(momentum) if nesterov else heavy_ball_bound(momentum)
    if decay > bound or decay >= 1.0:
        formula = "((1 - momentum) / (1 + momentum))**2" if nesterov else "(1 - sqrt(momentum))**2"
        raise ExplrError(
            f"no exponential schedule is equivalent to lr={lr}, weight_decay={weight_decay}, momentum={momentum}"
            f"{', nesterov=True' if nesterov else ''}: lr * weight_decay = {decay:.6g} exceeds {formula} = {bound:.6g}. "
            f"Lower lr or weight_decay{_smaller_momentum(decay, nesterov)}."
        )
    if nesterov:
        root = (1.0 + momentum) * math.sqrt((1.0 - decay) * (bound - decay))
        return 2.0 * decay / (1.0 - momentum + (1.0 + momentum) * decay + root)
    root = math.sqrt((bound - decay) * ((1.0 + math.sqrt(momentum)) ** 2 - decay))
    return 2.0 * decay / (1.0 - momentum + decay + root)


def _smaller_momentum(decay: float, nesterov: bool) -> str:
    """Name the momentum at which ``decay`` would convert, rounded down so that the advice works."""
    if decay >= 1.0:
        return ""
    root = math.sqrt(decay)
    largest = (1.0 - root) / (1.0 + root) if nesterov else (1.0 - root) ** 2
    return f", or use momentum <= {math.floor(1e3 * largest) / 1e3:g}"


def _log_scale(shares: npt.ArrayLike) -> FloatArray:
    """Return log P before each step and after the last."""
    # A running sum over 10^6 steps in float64 would cost digits of the learning rate, which is its exponential.
    growth = np.cumsum(-np.log1p(-np.asarray(shares)), dtype=np.longdouble)
    return np.concatenate([[0.0], growth], dtype=np.float64)
