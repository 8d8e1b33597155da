r"""What an optimizer's buffers remember of decayed weights: one recursion for each family of optimizers, in numbers.

A twin is a run of the same optimizer without weight decay whose weights are P_t times those of the run with it. Each buffer of
the optimizer asks for a condition, and each hyper-parameter that it reads afresh at every step can meet one. A family knows

* which hyper-parameters it ``reads``,
* the ``memory`` that it carries from step to step, and how a step advances it (``advance``),
* with which hyper-parameters the twin takes the same step (``settings``).

The caller keeps P: with the share x_t that ``advance`` gives, P_{t+1} = P_t / (1 - x_t). The twin's learning rate is
η_t · P_t^(lr_power - 1) · P_{t+1} · exp(log_factor). All terms of a share are positive, so nothing cancels.

:class:`HeavyBall` is the theorem of Li & Arora (2020); of the twins of :class:`Nesterov` momentum and of :class:`AdamW` we know
no published statement.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np

from explr.errors import ExplrError

Memory = tuple[float, ...]
Numbers = Any  # a float, or an array with one for each step


class Family(Protocol):
    """A family of optimizers: how its twin is computed, step by step."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The hyper-parameters that :meth:`advance` and :meth:`settings` take, in this order."""

    @property
    def lr_power(self) -> int:
        """How often P enters the twin's rate, the power of c by which a rate goes with weights that are c times larger."""

    def start(self, steps_done: int | None = None) -> Memory:
        """Return the memory of a run with empty buffers, or of one that has taken some steps with its weight decay."""

    def advance(self, memory: Memory, *settings: float) -> tuple[float, Memory]:
        """Return the share x_t of the weights that decay takes away at a step, and the memory after it."""

    def settings(self, before: Numbers, after: Numbers, *settings: Numbers) -> dict[str, Numbers]:
        """Return the twin's hyper-parameters for a step, and ``log_factor``; works on arrays of steps as well."""

    def bound(self, *settings: float) -> float:
        """Return the largest λη that has a twin at every step of a constant schedule."""

    def refusal(self, share: float, *settings: float) -> str:
        """Say what is wrong with a step that has no twin, and how far off it is."""


class HeavyBall:
    r"""SGD with heavy-ball momentum: v ← γv + τ(∇L + λθ), θ ← θ - ηv, with τ = 1 - dampening, but 1 where v is empty.

    The memory is κ, the decay coefficient that the buffer carries: v = P ṽ + κ θ at every step. With D = τλ + γκ,

        x = η D,    κ' = D / (1 - x).

    The twin keeps momentum and dampening.
    """

    reads = ("lr", "weight_decay", "momentum", "dampening")
    lr_power = 2

    def start(self, steps_done: int | None = None) -> Memory:
        """Return (κ, 1 where the buffer is empty)."""
        return (0.0, 0.0 if steps_done else 1.0)

    def advance(self, memory: Memory, *settings: float) -> tuple[float, Memory]:
        """Return x and (κ', 0)."""
        lr, weight_decay, momentum, dampening = settings
        carried, empty = memory
        decay = (weight_decay if empty or not momentum else (1.0 - dampening) * weight_decay) + momentum * carried
        share = lr * decay
        return share, (decay / (1.0 - share) if share < 1.0 else math.inf, 0.0)

    def settings(self, before: Numbers, after: Numbers, *settings: Numbers) -> dict[str, Numbers]:
        """Return the momentum and the dampening that came in."""
        _, _, momentum, dampening = settings
        return {"log_factor": 0.0, "momentum": momentum, "dampening": dampening}

    def bound(self, *settings: float) -> float:
        """Return (1 - √γ)² / τ."""
        _, _, momentum, dampening = settings
        return heavy_ball_bound(momentum) / (1.0 - dampening if momentum else 1.0)

    def refusal(self, share: float, *settings: float) -> str:
        """Say what is wrong, and which constant rates convert."""
        lr, weight_decay, momentum, _ = settings
        return (
            f"lr={lr:.6g} with weight_decay={weight_decay:.6g}, momentum={momentum:.6g} takes away all of the weights (a share "
            f"of {share:.6g}; it must stay below 1). At this step lr must be below {lr / share:.6g}; at a constant rate "
            f"lr * weight_decay must not exceed (1 - sqrt(momentum))**2 = {heavy_ball_bound(momentum):.6g}."
        )


class Nesterov:
    r"""SGD with Nesterov momentum: v ← γv + g', θ ← θ - η(g' + γv), with g' = ∇L + λθ.

    The twin has buffer ṽ = (a/P) (v - h θ) with momentum γ̃ and τ̃ = 1 - dampening of its own at every step. The memory is h, the
    decay coefficient that the buffer carries, and log a. With δ = ηλ and 1 - c = γ(δ + ηγh) / (1 - δ),

        x = (1 + γ)δ + ηγ²h,    h' = (λ + γh) / (1 - x),    a' = √(a/c) / (1 - δ),
        γ̃ = γ / (a' c (1 - δ)),    τ̃ = a' (1 + ηγh),    η̃ = P P' η c.

    A common factor of the buffer is free; where it starts empty torch takes the first gradient undamped, so a' = τ̃ = 1 there.
    """

    reads = ("lr", "weight_decay", "momentum")
    lr_power = 2

    def start(self, steps_done: int | None = None) -> Memory:
        """Return (h, log a, 1 where the buffer is empty)."""
        return (0.0, 0.0, 0.0 if steps_done else 1.0)

    def advance(self, memory: Memory, *settings: float) -> tuple[float, Memory]:
        """Return x and (h', log a', 0); a share of at least 1 also where c is not positive."""
        lr, weight_decay, momentum = settings
        carried, log_a, empty = memory
        delta, pushed = lr * weight_decay, lr * momentum * carried
        share = (1.0 + momentum) * delta + momentum * pushed
        lost = momentum * (delta + pushed) / (1.0 - delta) if delta < 1.0 else math.inf
        if not (share < 1.0 and lost < 1.0):
            return max(share, lost), (math.inf, math.inf, 0.0)
        log_a = 0.0 if empty else 0.5 * (log_a - math.log1p(-lost)) - math.log1p(-delta)
        return share, ((weight_decay + momentum * carried) / (1.0 - share), log_a, 0.0)

    def settings(self, before: Numbers, after: Numbers, *settings: Numbers) -> dict[str, Numbers]:
        """Return γ̃, 1 - τ̃ and log c."""
        lr, weight_decay, momentum = settings
        delta, pushed, log_a = lr * weight_decay, lr * momentum * before[0], after[1]
        log_c = np.log1p(-momentum * (delta + pushed) / (1.0 - delta))
        return {
            "log_factor": log_c,
            "momentum": momentum * np.exp(-log_a - log_c - np.log1p(-delta)),
            "dampening": -np.expm1(log_a + np.log1p(pushed)),
        }

    def bound(self, *settings: float) -> float:
        """Return ((1 - γ) / (1 + γ))²."""
        return nesterov_bound(settings[2])

    def refusal(self, share: float, *settings: float) -> str:
        """Say what is wrong, and which constant rates convert."""
        lr, weight_decay, momentum = settings
        return (
            f"lr={lr:.6g} with weight_decay={weight_decay:.6g}, Nesterov momentum={momentum:.6g} takes away too much of the "
            f"weights (a share of {share:.6g}; it must stay below 1). At a constant rate lr * weight_decay must not exceed "
            f"((1 - momentum) / (1 + momentum))**2 = {nesterov_bound(momentum):.6g}."
        )


class AdamW:
    r"""AdamW: θ ← (1 - ηλ)θ - η m̂ / (√ŝ + ε), with averages m and s of gradients and their squares, and their corrections.

    The update does not feel the gradient's scale, so P enters the rate once; old gradients were taken at shorter weights and
    are too long, and a shorter memory makes up for it: m̃ = k m / P, s̃ = q s / P². The memory is (k, q, x_{t-1}, t). With
    n = t + 1, a = 1 - x_{t-1} and S² = q (1 - β₂ⁿ) / (1 - β̃₂ⁿ),

        x = ηλ,    k' = 1 / ((1 - β₁) + β₁ a / k),    q' = 1 / ((1 - β₂) + β₂ a² / q),
        β̃₁ = β₁ a k' / k,    β̃₂ = β₂ a² q' / q,    ε̃ = ε S / P,    η̃ = η P' S (1 - β̃₁ⁿ) / (k' (1 - β₁ⁿ)).
    """

    reads = ("lr", "weight_decay", "beta1", "beta2", "eps")
    lr_power = 1

    def start(self, steps_done: int | None = None) -> Memory:
        """Return (k, q, share before, steps done)."""
        return (1.0, 1.0, 0.0, float(steps_done or 0))

    def advance(self, memory: Memory, *settings: float) -> tuple[float, Memory]:
        """Return x and (k', q', x, t + 1)."""
        lr, weight_decay, beta1, beta2, _ = settings
        k, q, share, step = memory
        left = 1.0 - share
        k = 1.0 / ((1.0 - beta1) + beta1 * left / k)
        q = 1.0 / ((1.0 - beta2) + beta2 * left * left / q)
        share = lr * weight_decay
        return share, (k, q, share, step + 1.0)

    def settings(self, before: Numbers, after: Numbers, *settings: Numbers) -> dict[str, Numbers]:
        """Return β̃₁, β̃₂ and the logs of S (``log_eps_factor``) and of the rate's factor."""
        _, _, beta1, beta2, _ = settings
        (k, q, share, _), (k_after, q_after, _, n) = before, after
        left = 1.0 - share
        new1, new2 = 1.0 - beta1, 1.0 - beta2
        log_s = 0.5 * (np.log(q_after) + _log_correction(new2, n) - _log_correction(q_after * new2, n))
        log_factor = log_s - np.log(k_after) + _log_correction(k_after * new1, n) - _log_correction(new1, n)
        shorter = {"beta1": beta1 * left * k_after / k, "beta2": beta2 * left * left * q_after / q}
        return {"log_factor": log_factor, **shorter, "log_eps_factor": log_s}

    def bound(self, *settings: float) -> float:
        """Return 1."""
        return 1.0

    def refusal(self, share: float, *settings: float) -> str:
        """Say what is wrong."""
        lr, weight_decay, *_ = settings
        return (
            f"lr={lr:.6g} with weight_decay={weight_decay:.6g} takes away all of the weights (a share of {share:.6g}): "
            "lr * weight_decay must stay below 1."
        )


def no_twin(family: Family, share: float, settings: tuple[float, ...], step: int) -> ExplrError:
    """Return the error for a step whose share is not below 1; it names the step and the bound."""
    return ExplrError(
        f"no exponential schedule is equivalent to step {step}: {family.refusal(share, *settings)} Lower lr or weight_decay."
    )


def heavy_ball_bound(momentum: float) -> float:
    """Return the largest λη that converts at a constant rate, (1 - √γ)², without cancellation."""
    return ((1.0 - momentum) / (1.0 + math.sqrt(momentum))) ** 2


def nesterov_bound(momentum: float) -> float:
    """Return the largest λη that converts at a constant rate with Nesterov momentum, ((1 - γ) / (1 + γ))²."""
    return ((1.0 - momentum) / (1.0 + momentum)) ** 2


def _log_correction(new: Numbers, n: Numbers) -> Numbers:
    """Return log(1 - βⁿ), given 1 - β, the weight of what is new."""
    with np.errstate(divide="ignore"):
        return np.log(-np.expm1(n * np.log1p(-new)))
