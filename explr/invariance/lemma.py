"""Lemma 1 as a numerical check: the gradient at θ is perpendicular to θ, and c times the gradient at cθ."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from explr.errors import ExplrError
from explr.invariance.graph import first_line
from explr.invariance.measure import variances_of
from explr.invariance.sandbox import check_model, hooked_alike, left_as_it_is, run
from explr.invariance.tables import html_lines, html_page, html_tall_table, text_table

_NORM_ARGUMENTS = ("num_groups", "normalized_shape")
_NORM_MODULES: dict[type[nn.Module], str] = {
    nn.modules.batchnorm._BatchNorm: "batch_norm",
    nn.modules.instancenorm._InstanceNorm: "instance_norm",
    nn.LayerNorm: "layer_norm",
    nn.GroupNorm: "group_norm",
    nn.RMSNorm: "rms_norm",
}


def lemma1(model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], *batch: Any, factor: float = 2.0) -> Lemma1Report:
    r"""Check Lemma 1 by numbers at the model's weights θ, for c = ``factor``.

    For a scale-invariant loss L the gradient is perpendicular to the weights, ⟨∇L(θ), θ⟩ = 0, and scales inversely,
    ∇L(θ) = c ∇L(cθ). θ holds the parameters that require grad. The model, its buffers and gradients are not touched: both
    gradients are taken on copies, with the same random numbers, whichever generator they come from.

    Args:
        model: any module, in training mode.
        loss_fn: called as ``loss_fn(model(*inputs), target)``; returns a scalar.
        batch: the inputs, and last the target.
        factor: c > 0. A power of two makes cθ exact.

    Raises:
        ExplrError: for a factor that is not positive and finite, a model in eval mode or without trainable parameters, a batch
            that the model or the loss does not accept, a loss that is not a finite scalar, a backward pass that fails; for a
            model that moves an iterator on, so that no two calls are alike.

    >>> norm = nn.LayerNorm(8, elementwise_affine=False)
    >>> model = nn.Sequential(nn.Linear(4, 8, bias=False), norm, nn.Linear(8, 2).requires_grad_(False))
    >>> inputs, labels = torch.randn(16, 4), torch.randint(2, (16,))
    >>> lemma1(model, nn.functional.cross_entropy, inputs, labels).holds()
    True
    >>> model[2].requires_grad_(True)
    Linear(in_features=8, out_features=2, bias=True)
    >>> lemma1(model, nn.functional.cross_entropy, inputs, labels).holds()
    False
    """
    if not (isinstance(factor, int | float) and 0.0 < factor < math.inf):
        raise ExplrError(f"factor={factor!r} must be a positive, finite number; 2.0 scales without rounding.")
    if len(batch) < 2:
        raise ExplrError("lemma1 needs inputs and a target: lemma1(model, torch.nn.functional.cross_entropy, images, labels).")
    check_model(model, batch[:-1], "lemma1")
    *inputs, target = batch
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    gradients = []
    with _variances_seen(model) as shares:
        for c in (1.0, float(factor)):
            with left_as_it_is(model):  # so that both see the same random numbers
                gradients.append(_gradients(model, loss_fn, weights, c, inputs, target))
    at_one, at_factor = gradients
    rows = [_compare_gradients(name, weights[name], at_one[name], at_factor[name], factor) for name in weights]
    precision = max(torch.finfo(weight.dtype).eps for weight in weights.values())
    return Lemma1Report(float(factor), tuple(rows), precision, max(shares, default=0.0))


def _gradients(
    model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], weights: dict[str, Tensor], factor: float, inputs: Any, target: Any
) -> dict[str, Tensor]:
    scaled = {name: (factor * weight).requires_grad_() for name, weight in weights.items()}
    for name, parameter in model.named_parameters():
        if name in scaled:
            hooked_alike(scaled[name], parameter)
    with torch.enable_grad():
        output = run(model, scaled, inputs, "a batch of")
        try:
            loss = loss_fn(output, target)
        except Exception as error:
            raise ExplrError(f"loss_fn(model(*inputs), target) fails: {first_line(error)}") from error
    if (
        not isinstance(loss, Tensor)
        or loss.numel() != 1
        or loss.is_complex()
        or not (loss.requires_grad and torch.isfinite(loss))
    ):
        found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) and loss.numel() != 1 else repr(loss)
        raise ExplrError(
            f"at {factor:g} times the weights the loss is {found}: it must be a finite scalar that depends on them, and real."
        )
    try:
        gradients = torch.autograd.grad(loss, list(scaled.values()), allow_unused=True)
    except Exception as error:
        raise ExplrError(f"the backward pass of {type(model).__name__} fails: {first_line(error)}") from error
    return {
        name: torch.zeros_like(weights[name]) if gradient is None else gradient
        for name, gradient in zip(scaled, gradients, strict=True)
    }


def _compare_gradients(name: str, weight: Tensor, at_one: Tensor, at_factor: Tensor, factor: float) -> GradientRow:
    weight, at_one, at_factor = (_real(tensor).double() for tensor in (weight, at_one, at_factor))
    norms = (float(tensor.norm()) for tensor in (at_one, weight, at_one - factor * at_factor))
    return GradientRow(name, float((at_one * weight).sum()), *norms)


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.copysign(math.inf, part) if part else 0.0


@contextmanager
def _variances_seen(model: nn.Module) -> Iterator[list[float]]:
    """Collect eps / (variance + eps), the median of each norm module, while the model runs."""
    shares: list[float] = []

    def look(operation: str, module: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        x = (*inputs, *named.values())[0].detach()
        if operation == "instance_norm" and x.ndim == module._get_no_batch_dim():
            x = x[None]
        arguments = {"input": x, **{name: getattr(module, name, None) for name in _NORM_ARGUMENTS}}
        eps = getattr(module, "eps", None)
        variance = float(variances_of(operation)(arguments).median())
        shares.append(eps / (variance + eps) if eps else 0.0)

    hooks = [
        module.register_forward_pre_hook(partial(look, operation), with_kwargs=True)
        for module in model.modules()
        for kind, operation in _NORM_MODULES.items()
        if isinstance(module, kind)
    ]
    try:
        yield shares
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class GradientRow:
    """One parameter in :func:`lemma1`: inner products and norms, in float64.

    Attributes:
        name: of the parameter.
        inner: ⟨∇L, θ⟩ over this parameter.
        gradient: ‖∇L(θ)‖.
        weight: ‖θ‖.
        difference: ‖∇L(θ) - c ∇L(cθ)‖.
    """

    name: str
    inner: float
    gradient: float
    weight: float
    difference: float

    @property
    def cosine(self) -> float:
        """Cosine of the angle between gradient and weights. Parameters invariant only together have 0 only in the sum."""
        return _ratio(self.inner, self.gradient * self.weight)

    @property
    def gradient_error(self) -> float:
        """Error of the second half of the lemma, relative to this parameter's gradient."""
        return _ratio(self.difference, self.gradient)


@dataclass(frozen=True)
class Lemma1Report:
    """What :func:`lemma1` measured.

    Attributes:
        factor: c.
        rows: one :class:`GradientRow` per parameter.
        precision: spacing of the coarsest parameter dtype at 1.
        eps_share: the largest, over the model's norms, at θ and at cθ, of the median of eps / (variance + eps): how far they
            are from exact.
    """

    factor: float
    rows: tuple[GradientRow, ...]
    precision: float
    eps_share: float

    @property
    def cosine(self) -> float:
        """⟨∇L, θ⟩ / (‖∇L‖ ‖θ‖) over all trainable parameters; 0 where the loss is scale-invariant."""
        return self.total.cosine

    @property
    def gradient_error(self) -> float:
        """‖∇L(θ) - c ∇L(cθ)‖ / ‖∇L(θ)‖ over all trainable parameters; 0 where the loss is scale-invariant."""
        return self.total.gradient_error

    @property
    def total(self) -> GradientRow:
        """All parameters as one vector."""
        norms = (math.hypot(*(getattr(row, key) for row in self.rows)) for key in ("gradient", "weight", "difference"))
        return GradientRow("total", math.fsum(row.inner for row in self.rows), *norms)

    @property
    def tolerance(self) -> float:
        """What rounding and eps may cost the gradient, 10 √(precision + eps_share), and never more than 0.05.

        The square root is there because a relative error of ε in the activations switches about that share of the ReLUs, and
        a share ε of wrong terms is √ε of a norm. In float64 it is 1.5e-7, in float32 3.5e-3; eps = 1e-5 with variances near 1
        makes it 0.03. For a sharp check use float64 and eps = 1e-30. A network that is not scale-invariant is usually off by
        0.1 or more.
        """
        return min(10.0 * math.sqrt(self.precision + self.eps_share), 0.05)

    def holds(self, tol: float | None = None) -> bool:
        """Tell whether both halves hold to ``tol``, by default :attr:`tolerance`."""
        tol = self.tolerance if tol is None else tol
        return abs(self.cosine) <= tol and self.gradient_error <= tol

    def table(self) -> str:
        """Return the numbers as plain text, the parameters at fault marked."""
        return f"{self._verdict()}\n\n{text_table(*self._table())}"

    def _repr_html_(self) -> str:
        total = f"All parameters together: cosine {self.cosine:+.1e}, gradient error {self.gradient_error:.1e}."
        return html_page(self._verdict(), html_lines("p", [total]), html_tall_table(*self._table()))

    def _verdict(self) -> str:
        verdict = f"Lemma 1 {'holds' if self.holds() else 'FAILS'} at c = {self.factor:g}, tolerance {self.tolerance:.1e}"
        if self.eps_share > 1e-3:
            verdict += (
                f"; eps is {self.eps_share:.0%} of a norm's variances, so even an invariant network is off: use a smaller eps"
            )
        return verdict

    def _table(self) -> tuple[str, list[str], list[list[str]]]:
        allowed = self.tolerance * self.total.gradient
        rows = [
            [row.name, f"{row.cosine:+.1e}", f"{row.gradient_error:.1e}", "FAILS" if not row.difference <= allowed else ""]
            for row in self.rows
        ]
        total = [self.total.name, f"{self.cosine:+.1e}", f"{self.gradient_error:.1e}", "" if self.holds() else "FAILS"]
        header, lines = ["parameter", "cosine", "gradient error", ""], [*rows, total]
        noted = any(line[-1] for line in lines)
        return ("Lemma 1", header, lines) if noted else ("Lemma 1", header[:-1], [line[:-1] for line in lines])
