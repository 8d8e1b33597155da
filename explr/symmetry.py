r"""The symmetry behind the theorem, as a change to a network in training.

For a scale-invariant network and any c > 0 the map θ → cθ, momentum buffer v → v/c, learning rate η → c²η commutes with a step
of SGD, provided that everything that has the size of the activations follows: with d the degree of homogeneity of a norm's
input, its running mean is multiplied by c^d, its running variance and its eps by c^(2d). "A step with weight decay" is then "a
step without it, and this map". When c is a power of two nothing is rounded.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from explr.errors import ExplrError
from explr.invariance import InvarianceReport, scale_invariance
from explr.invariance.sandbox import check_model
from explr.invariance.tables import few

_BUFFERS = {"momentum_buffer": 1, "exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2}  # name → power of the gradient in it


def scale_weights(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor], factor: float) -> None:
    """Multiply parameters by ``factor`` and divide what buffers keep of gradients by it, of their squares by its square."""
    with torch.no_grad():
        for parameter in parameters:
            parameter.mul_(factor)
            state = optimizer.state.get(parameter, {})
            for name, power in _BUFFERS.items():
                if state.get(name) is not None:
                    state[name].mul_(factor**-power)


def largest_buffer(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor], factor: float) -> float:
    """Return the largest entry that these buffers would have after :func:`scale_weights`; inf beyond float64."""
    found = [0.0]
    for state in (optimizer.state.get(parameter, {}) for parameter in parameters):
        for name, power in _BUFFERS.items():
            if state.get(name) is not None:
                try:
                    found.append(float(state[name].abs().max()) * factor**-power)
                except OverflowError:
                    return math.inf
    return max(found)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside wrappers for parallel training and compilation, whose parameters are the same tensors."""
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) or hasattr(model, "_orig_mod"):
        inner = model._orig_mod if hasattr(model, "_orig_mod") else model.module
        assert isinstance(inner, nn.Module)
        model = inner
    return model


class Norms:
    """The normalisation layers of a network, and how their statistics and eps go with the weights.

    Which weights is said by :meth:`choose`, before anything is scaled.

    Args:
        model: the network, in training mode.
        example_inputs: what the model is called with, as a tuple or by name; without any :func:`guess_inputs` finds some.
        kwargs: what it is called with by name besides.

    Attributes:
        parameters: those of the network, by name.
        report: what :func:`~explr.invariance.analysis.scale_invariance` found.
        joint: the groups, by their positions, that must be scaled alike, in sets.
    """

    def __init__(
        self, model: nn.Module, example_inputs: Sequence[Any] | Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        model = unwrapped(model)
        self.model = model
        self.report = _report(model, example_inputs, kwargs)
        self.parameters = dict(model.named_parameters())
        modules = dict(model.named_modules())
        layers = {path: modules.get(path) for path in self.report.norms}
        self.layers: dict[str, Any] = {p: m for p, m in layers.items() if isinstance(getattr(m, "eps", None), float | int)}
        self.eps = {path: float(layer.eps) for path, layer in self.layers.items()}
        fixed = [path for path, norm in self.report.norms.items() if norm.eps and path not in self.layers]
        fixed += [approximation.path or "the model" for approximation in self.report.approximations]
        fixed += [p for p, m in self.layers.items() if "batch" in self.report.norms[p].kind and not hasattr(m, "running_mean")]
        if fixed:
            without = any(isinstance(modules.get(path), nn.RMSNorm) for path in fixed)  # one that has an eps is not among them
            warnings.warn(
                f"the eps or the statistics of {', '.join(fixed)} are not where norms of torch.nn have them, and cannot follow "
                "the weights: the equivalence is only as exact as that eps is negligible, and not in eval mode. Use a norm of "
                f"torch.nn{', and give nn.RMSNorm an eps (by default it has none)' * without}.",
                stacklevel=4,
            )

    def check_own(self, groups: Iterable[Iterable[Tensor]]) -> None:
        """Refuse parameters that are not the model's."""
        own = {id(parameter) for parameter in self.parameters.values()}
        if not all(id(parameter) in own for group in groups for parameter in group):
            raise ExplrError(
                "the optimizer has parameters that the model has not: give the model that it trains, or put the others, such "
                "as those of a loss, into a group of their own, marked scale_invariant=False."
            )

    def choose(self, groups: Sequence[Sequence[Tensor]]) -> None:
        """Take the sets of parameters that will be scaled, each by a factor of its own.

        Raises:
            ExplrError: if the parameters are not the model's, or the network is not scale-invariant in all of them together.
        """
        self.check_own(groups)
        chosen = [parameter for group in groups for parameter in group]
        if not self.report.invariant_in(chosen):
            raise ExplrError(f"the model is not scale-invariant in the optimizer's parameters: {self._why_not(chosen)}")
        self.joint = self.report.scaled_alike(groups)
        degrees = [self.report.norm_degrees(group) for group in groups]
        self._powers = {p: [(i, float(of[p])) for i, of in enumerate(degrees) if of[p]] for p in self.layers}

    def check_in_place(self) -> None:
        """Refuse to go on without a norm that is scaled, such as one that has been replaced."""
        scaled = {path: layer for path, layer in self.layers.items() if self._powers[path]}
        if all(_module_at(self.model, path) is layer for path, layer in scaled.items()):
            return
        present = {id(module) for module in self.model.modules()}  # a part may be inside a wrapper now
        if gone := [path for path, layer in scaled.items() if id(layer) not in present]:
            raise ExplrError(
                f"the model has no longer {few(gone)}, which ExpLR scales with the weights: put back what was there, and "
                "replace or convert norms (SyncBatchNorm.convert_sync_batchnorm) before ExpLR is built."
            )

    def check_present(self, parameters: Iterable[Tensor]) -> None:
        """Refuse to go on with parameters that the model has no longer."""
        present = {id(parameter) for parameter in self.model.parameters()}
        if any(id(parameter) not in present for parameter in parameters):
            raise ExplrError(
                "the optimizer has parameters that the model has no longer, and they have no gradient: others have taken their "
                "place (fully_shard and parametrizations make new ones). Build the optimizer, and ExpLR, after that."
            )

    def _why_not(self, chosen: Iterable[Tensor]) -> str:
        """Say what is in the way of scaling these parameters, and what would mend it."""
        own = {id(parameter) for parameter in chosen}
        others = {name for name, parameter in self.parameters.items() if id(parameter) not in own}
        missing = [name for part in self.report.joint if not others.issuperset(part) for name in part if name in others]
        if missing:
            return (
                f"some of them can only be scaled together with {few(missing)}. Give these the same lr and weight_decay, as in "
                "one parameter group."
            )
        reasons = [str(obstruction) for obstruction in self.report.obstructions]
        if len(reasons) > 3:
            reasons[2:] = [f"{len(reasons) - 2} more: scale_invariance(model, ...) tells all."]
        remedy = (
            "Or build the optimizer from scale_invariance(model, ...).parameter_groups(...), which sets the others apart."
            if self.report.share
            else "No weight converts as it is: put a norm behind every trained layer but the last, and freeze that one."
        )
        return " ".join([*reasons, remedy])

    def of(self, model: nn.Module) -> Norms:
        """Return the same for a copy of the network."""
        other = copy.copy(self)
        other.model = model
        copies = {id(ours): theirs for ours, theirs in zip(self.model.modules(), model.modules(), strict=True)}
        other.layers = {path: copies[id(layer)] for path, layer in self.layers.items() if id(layer) in copies}
        return other

    def largest_statistic(self, factors: Sequence[float]) -> float:
        """Return the largest mean, variance or eps that the norms would have; inf beyond float64.

        Where a norm keeps no running variance, that of its input is taken to be of order one.
        """
        found = [0.0]
        for path, layer in self.layers.items():
            try:
                factor = self._factor(path, factors)
            except OverflowError:
                return math.inf
            mean, variance = getattr(layer, "running_mean", None), getattr(layer, "running_var", None)
            found.append(factor * (0.0 if mean is None else float(mean.abs().max())))
            found.append(factor * factor * max(layer.eps, 1.0 if variance is None else float(variance.max())))
        return max(found)

    def variances(self, factors: Sequence[float]) -> list[float]:
        """Return the largest running variance of each norm that keeps some, as it would be."""
        return [
            self._factor(path, factors) ** 2 * float(layer.running_var.max())
            for path, layer in self.layers.items()
            if getattr(layer, "running_var", None) is not None
        ]

    def scale_statistics(self, factors: Sequence[float]) -> None:
        """Scale running means and variances as if the weights of each group had been multiplied by its factor."""
        for path, layer in self.layers.items():
            mean, variance = getattr(layer, "running_mean", None), getattr(layer, "running_var", None)
            if mean is None and variance is None:
                continue
            factor = self._factor(path, factors)
            if mean is not None:
                mean.mul_(factor)
            if variance is not None:
                variance.mul_(factor * factor)

    def scale_eps(self, factors: Sequence[float]) -> None:
        """Set every eps to what belongs to weights that many times those which the network had when this was built."""
        for path, layer in self.layers.items():
            factor = self._factor(path, factors)
            layer.eps = self.eps[path] * factor * factor

    def log_growth(self, logs: Sequence[float]) -> float:
        """Return the natural log of the largest factor by which the input of a norm grows when weights grow by exp(log)."""
        return max((sum(power * logs[index] for index, power in powers) for powers in self._powers.values()), default=0.0)

    def _factor(self, path: str, factors: Sequence[float]) -> float:
        return math.prod(factors[index] ** power for index, power in self._powers[path])


def _module_at(model: nn.Module, path: str) -> nn.Module | None:
    """Return a module by its path, faster than torch does."""
    module: nn.Module | None = model
    for name in path.split(".") if path else ():
        module = None if module is None else module._modules.get(name)
    return module


def exact_exp(power: float, exponent: int = 0) -> float:
    """Return exp(power) / 2**exponent such that results for two exponents differ by exactly a power of two.

    >>> exact_exp(100.0, exponent=40) * 2.0**40 == exact_exp(100.0)
    True
    """
    whole = math.floor(power / math.log(2))
    return math.ldexp(math.exp(power - whole * math.log(2)), whole - exponent)


def _report(
    model: nn.Module, example_inputs: Sequence[Any] | Mapping[str, Any] | None, kwargs: Mapping[str, Any]
) -> InvarianceReport:
    if isinstance(example_inputs, Tensor):
        raise ExplrError(
            "example_inputs is a tensor: give all that the model is called with, as a tuple, (batch,), or by name, "
            "{'images': batch}."
        )
    if isinstance(example_inputs, Mapping):
        kwargs, example_inputs = {**example_inputs, **kwargs}, ()
    if example_inputs is not None or kwargs:
        return scale_invariance(model, *(example_inputs or ()), **kwargs)
    check_model(model, ["to be guessed"], "model=")  # what another batch would not mend
    (guessed,) = guess_inputs(model)
    try:
        return scale_invariance(model, guessed)
    except ExplrError as error:
        raise ExplrError(
            f"{str(error).rstrip('.')}. The batch, of shape {tuple(guessed.shape)}, was guessed: "
            "give example_inputs, what the model is called with."
        ) from error


def guess_inputs(model: nn.Module) -> tuple[Tensor]:
    """Return a random batch for a network that begins with a convolution or a linear layer.

    Raises:
        ExplrError: if the first layer with weights is neither.
    """
    for layer in model.modules():
        if isinstance(layer, _ConvNd):
            shape = (16, layer.in_channels, *[32] * len(layer.kernel_size))
        elif isinstance(layer, nn.Linear):
            shape = (16, layer.in_features)
        elif next(layer.parameters(recurse=False), None) is not None:
            break
        else:
            continue
        return (torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(layer.weight),)
    raise ExplrError(
        "the model does not begin with a convolution or a linear layer: give example_inputs, what it is called with."
    )
