"""A proof against numbers: what is claimed not to change the output is done, on a copy in float64, for some steps in a row.

The prover follows rules, and a rule may be wrong. So every set of parameters that it claims can be scaled is scaled, each by a
factor of its own and another at each step, and the outputs are compared, with the same random numbers, and with state carried
from each step to the next. The factors are powers of two, which floating point multiplies by without rounding, and the
eps of norms follows them: of an invariant network even the rounding errors stay what they are. But for some, such as those of a
bias that scales beside weights that do not; and a norm of what is constant divides nothing but rounding errors by nothing. So
where outputs differ, they are held against a control: how much they differ when the weights move by one unit in the last place.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from explr.errors import ExplrError
from explr.invariance.attributes import tensors_in
from explr.invariance.degrees import Vector
from explr.invariance.findings import Verification
from explr.invariance.graph import storage_key
from explr.invariance.sandbox import hooked_alike, left_as_it_is
from explr.invariance.tables import few

LARGEST = 500_000_000  # a copy of more numbers than these could be too much for the machine
DRAWS = 2
CONTROLS = 3  # random moves of all weights by a unit in the last place
ROUNDING = 10.0  # a difference up to so many times that of a control is no sign of anything
STEPS = 2
_AT_GRADIENTS = (Tensor.register_hook, Tensor.grad_fn.__get__)  # type: ignore[union-attr]
Exponents = Sequence[tuple[int, ...]]  # of every set, at each step, as powers of two


def hold_against_numbers(
    model: nn.Module,
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
    sets: Sequence[Sequence[str]],
    eps: Mapping[str, tuple[float, Vector]],
    left: float = 0.0,
    steps: int = STEPS,
) -> Verification:
    """Scale sets of parameters that are claimed to be scale-invariant; return by how much the output changes, or why not.

    Args:
        model: the network, which stays as it is.
        inputs: what it is called with, by position and by name.
        sets: names of parameters; each set may be scaled without the others.
        eps: module → what its attribute ``eps`` is, and the degree of what it is added to; scaled as that is.
        left: how large, relatively, what counts as an eps and is no attribute of a module is.
        steps: how many in a row; more than two where the network carries something on from each to the next.

    Returns:
        The largest change; or the reason why nothing was compared, such as a network that cannot be copied, or one that divides
        rounding errors by rounding errors.

    Raises:
        ExplrError: if the output changes by more than rounding, and what is left of eps, explain, or if a backward that was
            written by hand, or a hook, makes a gradient that does not go with the scale.
    """
    parameters = list(model.parameters())
    if not sets:
        return Verification(reason="nothing converts")
    if (many := sum(p.numel() for p in parameters)) > LARGEST:
        return Verification(reason=f"a copy of {many:,} parameters, more than {LARGEST:,}, may not fit into memory")
    if any(p.is_meta or p.layout is not torch.strided for p in parameters):
        return Verification(reason="some parameters are sparse, or on the meta device")
    unscaled = [(0,) * steps] * len(sets)
    plain: list[Tensor] | None = None
    for dtype in (torch.float64, None):  # the types of some networks are written into their code
        run = _Run(model, inputs, eps, dtype)
        allowed = run.tolerance + 50.0 * left
        if allowed <= 0.1 and (plain := run(sets, unscaled)) is not None:
            break
    if plain is None:
        what = "a constant that counts as an eps is too large" if allowed > 0.1 else "a copy of the network does not run"
        return Verification(reason=what)
    if run.foreign or not _finite(plain):
        foreign = "a copy of the network uses parameters of the original"
        return Verification(reason=foreign if run.foreign else "the output is not finite")
    chance = random.Random(0)
    # Even, so that square roots are powers of two as well; upwards only, where an eps stays what it is.
    powers = (2, 4, 6) if left else (-6, -4, -2, 2, 4, 6)
    worst: float | None = None
    for _ in range(DRAWS):
        exponents = [tuple(chance.choice(powers) for _ in range(steps)) for _ in sets]
        scaled = run(sets, exponents)
        if scaled is None or not _finite(scaled):  # a scale that floating point does not hold
            continue
        change = _distance(scaled, plain)
        worst = max(worst or 0.0, change)
        if change > allowed:
            noise = max(run.noise(sets, exponents, scaled), run.noise(sets, unscaled, plain))
            if change <= ROUNDING * noise:
                moved = f"moving the weights by one unit in the last place changes the output by {noise:.1e} of its size"
                return Verification(reason=f"numbers cannot tell, for {moved}")
            each = zip(sets, exponents, strict=True)
            guilty = next((names for names, own in each if _distance(run([names], [own]), plain) > allowed), sets[0])
            raise ExplrError(
                f"explr is wrong about {type(model).__name__}: by its rules, scaling {few(guilty)} leaves the output as it is, "
                f"but it changes by {change:.1e} of its size. That is a bug of explr, not of the model: please report it, with "
                "the model, and do not rely on the proof, which verify=False returns."
            )
    if worst is None:
        return Verification(reason="at other scales the output is not finite, or a copy of the network does not run")
    if run.has_gradients_of_its_own():
        first = [power for power, *_ in exponents]
        before, after = run.gradients(sets, [0] * len(sets)), run.gradients(sets, first)
        if before is None or after is None:
            return Verification(reason="the backward pass of a copy of the network does not run")
        largest = max(float(gradient.norm()) for gradient in before.values())
        for name, power in ((name, power) for names, power in zip(sets, first, strict=True) for name in names):
            # One that is 0 but for rounding, such as that of a bias before a norm, is compared with the others.
            size = max(float(before[name].norm()), run.tolerance * largest)
            change = float((after[name] * 2.0**power - before[name]).norm()) / size if size else 0.0
            if change > allowed:
                raise ExplrError(
                    f"{type(model).__name__} has a custom backward, or a hook on gradients: the output does not feel the scale "
                    f"of {name}, but its gradient is off by {change:.1e} of 1/c times what it was. Then no theorem holds. Use "
                    "a backward, and hooks, with which gradients shrink as the weights grow."
                )
    return Verification(worst, "float64" if run.dtype else "the precision of the network")


def changes_at_scale(
    model: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]], names: Sequence[str]
) -> dict[float, float]:
    """Scale these parameters together, and nothing else; return c → by how much the output changes, relatively.

    In the network's own precision, with every eps as it is: what is left is what eps comes to. Returns nothing where there is
    nothing to compare.
    """
    run = _Run(model, inputs, {}, None)
    if not names or (plain := run([names], [(0,) * STEPS])) is None or run.foreign or not any(output.any() for output in plain):
        return {}
    changed = {2.0**power: run([names], [(power,) * STEPS]) for power in (2, -2)}
    return {factor: _distance(outputs, plain) for factor, outputs in changed.items() if outputs is not None}


class _Run:
    """Some steps of a copy of a network, as many as there are exponents."""

    def __init__(
        self, model: nn.Module, inputs: Any, eps: Mapping[str, tuple[float, Vector]], dtype: torch.dtype | None
    ) -> None:
        self.model = model
        self.inputs = inputs
        self.eps = eps
        self.dtype = dtype
        self.foreign = False
        self.hooked = False
        self.twin: nn.Module | None = None
        self.memory: list[tuple[Tensor, Tensor]] = []  # of the copy, and of the original
        kinds = {dtype or p.dtype for p in model.parameters() if p.is_floating_point() or p.is_complex()}
        # As in lemma1: a relative error of x in the activations switches about that share of the ReLUs.
        self.tolerance = 100.0 * math.sqrt(max((torch.finfo(kind).eps for kind in kinds), default=1.0))

    def __call__(self, sets: Sequence[Sequence[str]], exponents: Exponents, control: int | None = None) -> list[Tensor] | None:
        """Return the outputs of all steps; None where the copy does not run.

        A ``control`` is the seed with which every weight is moved by one unit in the last place, up or down.
        """
        try:
            twin = self.twin = self.twin or self._copy()
            for mine, original in self.memory:
                mine.copy_(original)
            if control is not None:
                _move_by_an_ulp(twin, control)
            with left_as_it_is(twin), torch.no_grad():  # which puts the random numbers back, too
                return list(self._steps(twin, sets, exponents))
        except Exception:  # of the user's code, which may do anything
            return None

    def noise(self, sets: Sequence[Sequence[str]], exponents: Exponents, outputs: Sequence[Tensor]) -> float:
        """Return by how much the outputs change, at most, when every weight is moved by one unit in the last place."""
        return max(_distance(self(sets, exponents, seed), outputs) for seed in range(CONTROLS))

    def has_gradients_of_its_own(self) -> bool:
        """Tell whether a backward written by hand, or a hook, which no trace shows, may be on the way to the output."""
        assert self.twin is not None
        if any(module._backward_hooks or module._backward_pre_hooks for module in self.twin.modules()):
            return True
        if any(parameter._backward_hooks for parameter in self.twin.parameters()):
            return True
        try:
            with left_as_it_is(self.twin), torch.enable_grad():
                outputs = list(self._steps(self.twin, [()], [(0,)]))
        except Exception:  # which the attempt to take gradients will say
            return True
        seen: set[Any] = set()
        todo = [output.grad_fn for output in outputs]
        while todo:
            node = todo.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if isinstance(node, torch.autograd.function.BackwardCFunction):
                return True
            todo += [following for following, _ in node.next_functions]
        return self.hooked

    def gradients(self, sets: Sequence[Sequence[str]], powers: Sequence[int]) -> dict[str, Tensor] | None:
        """Return the gradients of a fixed function of the outputs of one step; None where there is no backward pass."""
        assert self.twin is not None
        for mine, original in self.memory:
            mine.copy_(original)
        try:
            with left_as_it_is(self.twin), torch.enable_grad():
                self.twin.zero_grad()
                steps = self._steps(self.twin, sets, [(power,) for power in powers])
                outputs = [output for output in map(_dense, steps) if output.requires_grad]
                chance = torch.Generator().manual_seed(0)
                kinds = [torch.complex128 if output.is_complex() else torch.float64 for output in outputs]
                weights = [torch.randn(o.shape, generator=chance, dtype=k).to(o) for o, k in zip(outputs, kinds, strict=True)]
                if outputs:
                    torch.autograd.backward(outputs, weights)
        except Exception:  # of the user's code, which may do anything
            return None
        return {n: torch.zeros_like(p) if p.grad is None else _dense(p.grad) for n, p in self.twin.named_parameters()}

    def _copy(self) -> nn.Module:
        """Copy the network in another precision; tensors that share memory do so in the copy, too."""
        memo: dict[int, Any] = {}
        storages: dict[tuple[int, torch.dtype], Tensor] = {}
        for tensor in (*tensors_in(self.model).values(), *self.model.parameters(), *self.model.buffers()):
            data = tensor.detach()
            key = (storage_key(data), data.dtype)
            if data.layout is torch.strided and key not in storages:
                whole = torch.empty(0, dtype=data.dtype, device=data.device).set_(data.untyped_storage())
                storages[key] = self._converted(whole)
                self.memory.append((storages[key], whole))
            if data.layout is torch.strided:
                new = storages[key].as_strided(data.shape, data.stride(), data.storage_offset())
            else:
                new = self._converted(data)
            if isinstance(tensor, nn.Parameter):
                new = hooked_alike(nn.Parameter(new, tensor.requires_grad), tensor)
            memo.setdefault(id(tensor), new)
        return copy.deepcopy(self.model, memo)

    def _converted(self, tensor: Tensor) -> Tensor:
        """Return a copy of a tensor in our precision."""
        if self.dtype is None or not (tensor.is_floating_point() or tensor.is_complex()):
            return tensor.detach().clone()
        return tensor.detach().to(torch.complex128 if tensor.is_complex() else self.dtype, copy=True)

    def _steps(self, twin: nn.Module, sets: Sequence[Sequence[str]], exponents: Exponents) -> Iterator[Tensor]:
        parameters = dict(twin.named_parameters())
        for step in range(len(exponents[0])):
            scale: dict[str, int] = {}  # of every parameter, as a power of two
            for names, powers in zip(sets, exponents, strict=True):
                scale |= dict.fromkeys(names, powers[step])
                with torch.no_grad():
                    for name in names:
                        parameters[name].mul_(2.0 ** (powers[step] - (powers[step - 1] if step else 0)))
            for path, (eps, degree) in self.eps.items():
                twin.get_submodule(path).eps = eps * 2.0 ** float(sum(d * scale.get(name, 0) for name, d in degree.items()))
            with _Watch(self.model) as watch:
                args, named = tree_map_only(Tensor, self._converted, self.inputs)
                output = twin(*args, **named)
            self.foreign |= watch.foreign
            self.hooked |= watch.hooked
            yield from (leaf.clone() for leaf in tree_leaves(output) if isinstance(leaf, Tensor))


class _Watch(TorchFunctionMode):
    """Sees whether a copy uses the parameters of the original, such as through a function that was defined around them.

    And whether it gets at what will be gradients.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.foreign = False
        self.hooked = False
        self._own = {id(parameter) for parameter in model.parameters()}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for arg in (*args, *kwargs.values()):
            self.foreign |= id(arg) in self._own
        self.hooked |= function in _AT_GRADIENTS
        return function(*args, **kwargs)


def _move_by_an_ulp(model: nn.Module, seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() or parameter.is_complex():
                signs = torch.randint(0, 2, parameter.shape, generator=chance).to(parameter) * 2 - 1
                parameter.mul_(1 + signs * torch.finfo(parameter.dtype).eps)


def _finite(outputs: Sequence[Tensor]) -> bool:
    return all(bool(torch.isfinite(_dense(output)).all()) for output in outputs)


def _dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def _distance(outputs: Sequence[Tensor] | None, plain: Sequence[Tensor]) -> float:
    """Return the largest relative distance between two lists of outputs; 0 where floating point does not hold them."""
    if outputs is None or not _finite(outputs):
        return 0.0
    if [a.shape for a in outputs] != [b.shape for b in plain]:
        return math.inf
    distances = [0.0]
    for a, b in zip(outputs, plain, strict=True):
        kind = torch.complex128 if b.is_complex() else torch.float64
        size = max(float(_dense(b).to(kind).norm()), 1e-10 * math.sqrt(b.numel()))
        distances.append(float((_dense(a).to(kind) - _dense(b).to(kind)).norm()) / size if size else 0.0)
    return max(distances)
