"""The rules: how the degree of what an ATen operation gives follows from the degrees of its arguments.

A rule takes a ``Call``, gives a degree (or several, one per output) and asks for the conditions under which it holds.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from explr.invariance.calls import Call
from explr.invariance.degrees import CONSTANT, Degree, Eps, Parts, Shifted, Vector, apart, combine, degree_of_constant
from explr.invariance.graph import PER_CHANNEL, nodes_in, storage_key, storage_of, tensors_of
from explr.invariance.memory import axes_seen, in_order, place_of

DENOMINATOR = 10**6  # the largest of an exponent
TINY = 1e-3  # a constant up to this size, added to something that scales, is taken for the eps of a hand-written norm
NORMS_OF_AXES = ("layer_norm", "native_layer_norm")  # whose bias has those axes
SMOOTH = "Put a norm without trainable affine before it, freeze the parameters that scale it, or use ReLU."
ADDED = (
    "A constant is added to what scales: put a norm before it, without trainable affine, freeze the parameters that scale it, "
    f"or leave the constant out; one of at most {TINY:g} counts as an eps."
)
BOUNDED = (
    "A bound is set to what scales: put a norm before it, without trainable affine, freeze the parameters that scale it, "
    f"or use 0; a lower bound of at most {TINY:g} counts as an eps."
)

Rule = Callable[[Call], Degree | list[Degree]]


def norm(call: Call) -> Degree:
    """As same, but for the 0-norm, which counts."""
    degree = call.degree(call.first)
    return CONSTANT if 0 in (call["ord"], call["p"]) else degree


def same(call: Call) -> Degree:
    """Homogeneous of degree 1 in its first argument."""
    return call.degree(call.first)


def view(call: Call) -> Degree:
    """As same; but the bits of a number, read as another type, say nothing about its size."""
    return nonlinear(call) if "dtype" in call.arguments else seen(call)


def seen(call: Call) -> Degree:
    """As same; what is told apart by axes is looked at again by whoever reads the view."""
    degree = call.raw(call.first)
    if not isinstance(degree, Shifted):
        return same(call)
    if all(storage_key(out) == storage_of(call[call.first]) for out in tensors_of(call.node)):
        return degree
    return _copied_in_order(call, degree) if call.operation in ("reshape", "flatten") else same(call)


def _copied_in_order(call: Call, degree: Shifted) -> Degree:
    """Return the degree of a copy that has the entries of its argument, in their order, in another shape."""
    out = call.node.meta["val"]
    axes = axes_seen(degree.axes, in_order(call[call.first].meta["val"].shape), in_order(out.shape))
    return same(call) if axes is None else replace(degree, axes=axes, place=place_of(out))


def with_constants(call: Call, *degrees: Degree) -> list[Degree]:
    """Return the degrees of the first outputs; the others are counts, indices and such."""
    return [*degrees, *[CONSTANT] * (len(tensors_of(call.node)) - len(degrees))]


def values(call: Call) -> list[Degree]:
    """Values of the degree of what is selected or averaged, linear in the weights of the average; counts and indices."""
    return with_constants(call, product(call, "weight", "per_sample_weights"))


def channelwise(call: Call, *, keeps_shift: bool) -> Degree:
    """As same, and works on each channel alone, so that parts of different degree stay apart.

    Some hand on a number that is added to all of a channel.
    """
    degree = call.raw(call.first)
    if isinstance(degree, Parts | Shifted):
        spatial = re.search(r"([123])d", call.operation)
        outer = range(call[call.first].meta["val"].ndim - (int(spatial[1]) if spatial else 0))
        if not (degree.axes <= set(outer) if isinstance(degree, Shifted) else degree.axis in outer):
            return call.degree(call.first)
    if keeps_shift:
        return call.given(degree)
    if isinstance(degree, Parts):
        return Parts(degree.axis, tuple(call.found.agree(call.node, [part]) for part in degree.parts), degree.node)
    return call.degree(call.first)


def avg_pool(call: Call) -> Degree:
    """An average, which hands on what is added to all of a channel, unless there are zeros in it."""
    zeros = any(call["padding"]) and call["count_include_pad"] is not False
    return channelwise(call, keeps_shift=call["divisor_override"] is None and not zeros)


def values_and_indices(call: Call) -> Degree | list[Degree]:
    """Values of the same degree, and indices; or the larger of two tensors."""
    if call["other"] is not None:
        return call.agree([call["self"], call["other"]])
    return with_constants(call, call.degree(call.first))


def power(call: Call, *exponents: Fraction | int) -> list[Degree]:
    """Outputs that are homogeneous of these degrees in the first argument."""
    degree = call.degree(call.first)
    # 1 / 0 is infinite, which has no degree of its own either.
    return [combine(CONSTANT, degree, Fraction(exponent)) for exponent in exponents]


def power_of(call: Call) -> Degree:
    """A constant power, the degree times as much."""
    base, exponent = call["self"], call["exponent"]
    if not (isinstance(base, fx.Node) and isinstance(exponent, int | float) and math.isfinite(exponent)):
        return nonlinear(call)
    if exponent == 0:
        return CONSTANT  # of 0, too
    simple = Fraction(exponent).limit_denominator(DENOMINATOR)  # 1/3 for 0.333..., but nothing else for 1e-7
    return combine(CONSTANT, call.degree("self"), simple if float(simple) == exponent else Fraction(exponent))


def prod(call: Call) -> Degree:
    """A product of all entries."""
    entries, products = call[call.first].meta["val"].numel(), tensors_of(call.node)[0].numel()
    if not isinstance(entries, int):  # how many there are is a matter of the data
        return nonlinear(call)
    if entries == 0:
        return CONSTANT  # 1
    return combine(CONSTANT, call.degree(call.first), Fraction(entries, products))


def product(call: Call, *factors: str, plus: str | None = None) -> Degree:
    """Multilinear in the factors, plus one more term."""
    total = call.product(factors)
    if plus is None or (call[plus] is not None and call["beta"] == 0):
        return total
    return call.join(total, plus)


def affine(call: Call, *factors: str) -> Degree:
    """Multilinear in the factors, plus a bias for each channel."""
    output, weight, bias = call.node.meta["val"], call["weight"].meta["val"], call["bias"]
    if bias is not None and bias.meta["val"].ndim != 1:  # one for each sample, say
        return product(call, *factors, plus="bias")
    axis = output.ndim - (weight.ndim - 2 if "conv" in call.operation else 0) - 1
    shifts = [] if bias is None else [call.degree("bias")]
    x = call.raw("input")
    if isinstance(x, Shifted) and _spreads_shift(call, x):
        by = call.degree("weight")
        return call.shifted([axis], combine(x.degree, by), [*(combine(shift, by) for shift in x.shifts), *shifts])
    return call.shifted([axis], call.product(factors), shifts)


def _spreads_shift(call: Call, x: Shifted) -> bool:
    """Tell whether numbers per channel come out as numbers per channel: not so at the borders, where there are zeros."""
    ndim, weight = call["input"].meta["val"].ndim, call["weight"].meta["val"]
    if call.operation == "linear":
        return weight.ndim == 2 and x.axes <= {ndim - 1}
    pads = call["padding"] != "valid" and any(call["padding"])
    return call.operation in ("conv1d", "conv2d", "conv3d") and x.axes <= {ndim - weight.ndim + 1} and not pads


def times(call: Call) -> Degree:
    """A product."""
    return call.given(call.raw("self")) if _by_a_number(call) else product(call, "self", "other")


def divide(call: Call) -> Degree:
    """A quotient: the difference of degrees."""
    if call["rounding_mode"] is not None:
        return nonlinear(call)
    if _by_a_number(call):
        return call.given(call.raw("self"))
    return combine(call.degree("self"), zero_as_constant(call.degree("other")), Fraction(-1))


def _by_a_number(call: Call) -> bool:
    """Tell whether what carries a shift is multiplied by a number, or divided, which leaves it as it is."""
    number = call["other"]
    plain = isinstance(number, int | float) and degree_of_constant(number) is not None
    return plain and isinstance(call.raw("self"), Shifted)


def addcdiv(call: Call) -> Degree:
    """A term and a quotient."""
    ratio = combine(call.degree("tensor1"), zero_as_constant(call.degree("tensor2")), Fraction(-1))
    return call.join(ratio, "self")


def zero_as_constant(degree: Vector | None) -> Vector:
    """What goes with any degree counts as constant."""
    return CONSTANT if degree is None else degree


def present(call: Call, *names: str) -> list[Any]:
    """Return the arguments of these names that there are."""
    return [call[name] for name in names if call[name] is not None]


def sum_of(call: Call, *names: str, remedy: str = ADDED) -> Degree:
    """Terms that must grow alike; a tiny constant among them counts as an eps.

    The remedy is for other constants.
    """
    arguments = present(call, *names)
    numbers = [a for a in arguments if isinstance(a, int | float)]
    tensors = [a for a in arguments if isinstance(a, fx.Node)]
    if len(numbers) == len(tensors) == 1 and call["alpha"] in (None, 1):
        size, vector = abs(numbers[0]), call.agree(tensors)
        if vector and 0 < size <= TINY:
            call.found.eps.append(Eps(call.node, tensors[0], vector, size))
            return vector
    if call.operation in ("add", "sub") and len(tensors) == len(arguments):
        return _sum_with_shifts(call, tensors)
    return call.agree(arguments, remedy if numbers else "")


def _sum_with_shifts(call: Call, tensors: list[fx.Node]) -> Degree:
    """Return the degree of a sum of which some terms may carry shifts along the same axes of the output."""
    degrees = [call.found.degree(tensor) for tensor in tensors]
    shifted = [(tensor, degree) for tensor, degree in zip(tensors, degrees, strict=True) if isinstance(degree, Shifted)]
    widened = any(tensor.meta["val"].ndim != call.node.meta["val"].ndim for tensor, _ in shifted)
    if widened or any(isinstance(degree, Parts) for degree in degrees):
        return call.agree(tensors)
    one = call.found.agree(call.node, [degree.degree if isinstance(degree, Shifted) else degree for degree in degrees])
    axes = [axis for _, degree in shifted for axis in degree.axes]
    return call.shifted(axes, one, [shift for _, degree in shifted for shift in degree.shifts])


def concatenate(call: Call) -> Degree:
    """Parts of different degree are put side by side: whether that matters, the next operation decides."""
    tensors = call["tensors"]
    values = [tensor.meta["val"] for tensor in tensors]
    tensors = [
        t for t, value in zip(tensors, values, strict=True) if value.ndim != 1 or not statically_known_true(value.shape[0] == 0)
    ]
    axis = (call["dim"] or 0) % call.node.meta["val"].ndim
    parts: list[Vector | Shifted | None] = []
    for tensor in tensors:
        degree = call.found.degree(tensor)
        if isinstance(degree, Parts):
            parts += degree.parts if apart(degree, axis) else [call.agree([tensor])]
        else:
            part = degree if apart(degree, axis) else call.agree([tensor])
            parts.append(replace(part, axes=frozenset((axis,)), place=None) if isinstance(part, Shifted) else part)
    first = next((part for part in parts if part is not None), None)
    if all(part is None or part == first for part in parts):
        return call.given(first)
    return Parts(axis, tuple(parts), call.node)


def stack(call: Call) -> Degree:
    """Parts on an axis of their own must agree."""
    return call.agree(call["tensors"])


def where(call: Call) -> Degree:
    """Either of two tensors, by a condition that must not scale."""
    if "other" not in call.arguments:
        return CONSTANT
    call.require(call.degree("condition"), "nonlinear", SMOOTH)
    return call.agree([call["self"], call["other"]])


def scatter(call: Call) -> Degree:
    """Some entries replaced: they must grow as the rest."""
    if call["reduce"] in ("prod", "multiply"):
        return nonlinear(call)
    x = call.raw("self") if call.operation == "masked_fill" and call["value"] == -math.inf else None
    if isinstance(x, Shifted) and call["self"].meta["val"].ndim == call.node.meta["val"].ndim:
        return call.given(x)  # what is added to -inf leaves it there
    return call.agree(present(call, "self", "src", "source", "value", "values"))


def repeating_pad(call: Call) -> Degree:
    """More of the same along the last axes: what depends on the index along some axes alone still does."""
    x, sizes = call.raw("self"), call["pad"] if "pad" in call.arguments else call["padding"]
    outer = range(call["self"].meta["val"].ndim - len(sizes) // 2)
    return call.given(x) if isinstance(x, Shifted) or (isinstance(x, Parts) and x.axis in outer) else call.degree("self")


def pad(call: Call) -> Degree:
    """More of the same, or a constant."""
    if call["mode"] not in (None, "constant"):
        return repeating_pad(call)
    return call.agree(present(call, "self", "value"))


def clamp(call: Call) -> Degree:
    """Bounds at 0 or infinity are cones; a tiny lower bound is an eps."""
    if call["max"] is None:
        return sum_of(call, "self", "min", remedy=BOUNDED)
    return call.agree(present(call, "self", "min", "max"), BOUNDED)


def interpolate(call: Call) -> Degree:
    """Linear in the first argument; where it looks, given by the second, must not move."""
    call.require(call.degree("grid"), "nonlinear", SMOOTH)
    return call.degree("input")


def deform_conv(call: Call) -> Degree:
    """A convolution that looks where an offset says, with a mask for each place: the offset must not move."""
    call.require(call.degree("offset"), "nonlinear", "Freeze what gives the offsets, or normalise them.")
    factors = ("input", "weight", "mask") if call["use_mask"] else ("input", "weight")  # without, it is given zeros
    call.consulted.add("mask")
    return call.join(product(call, *factors), "bias")


def roi_pool(call: Call) -> list[Degree]:
    """Linear in the image, or the largest value there; the regions must not move."""
    call.require(call.degree("rois"), "nonlinear", SMOOTH)
    return with_constants(call, call.degree("input"))


def nan_to_num(call: Call) -> Degree:
    """What is no number becomes one that must grow alike; what is infinite, the largest there is, which is infinite still."""
    return call.agree(present(call, "self", "nan", "posinf", "neginf"))


def decompose(call: Call, *sizes: int) -> list[Degree]:
    """Factors of a matrix, of which some have its size, and others none, whatever the matrix."""
    degree = call.degree(call.first)
    return [degree if size else CONSTANT for size in sizes]


def solve(call: Call) -> Degree:
    """The X with A X = B."""
    if call["unitriangular"]:  # ones stand on the diagonal, whatever A has there
        call.require(call.degree("self"), "nonlinear", "Normalise the matrix, or freeze what gives it.")
    return combine(call.degree("B"), zero_as_constant(call.degree(call.first)), Fraction(-1))


def lerp(call: Call) -> Degree:
    """Between two tensors that grow alike, by a weight that must not."""
    call.require(call.degree("weight"), "nonlinear", SMOOTH)
    return call.agree([call["self"], call["end"]])


def prelu(call: Call) -> Degree:
    """Homogeneous for a fixed slope."""
    call.require(call.degree("weight"), "nonlinear", "Freeze the slope.")
    return call.degree("self")


def threshold(call: Call) -> Degree:
    """Homogeneous where the threshold is 0, or grows alike."""
    return call.agree([call["self"], call["threshold"], call["value"]])


def copy(call: Call) -> Degree:
    """Of the degree of what is copied."""
    return call.degree("src")


def fill(call: Call) -> Degree:
    """Of the degree of what it is filled with."""
    return call.degree("value" if "value" in call.arguments else "fill_value")


def free(call: Call) -> Degree:
    """Zeros, or memory that is yet to be written."""
    return None


def fixed(call: Call) -> Degree:
    """Does not depend on what comes in: a size, a random number."""
    return CONSTANT


def discrete(call: Call) -> Degree:
    """A sign, or which is the largest: does not depend on the scale of a tensor all of which grows alike."""
    for name in ("self", "other"):
        call.degree(name)
    return CONSTANT


def random(call: Call) -> Degree:
    """Overwrite a tensor with random numbers; where a tensor says how they are distributed, that one must not scale."""
    in_place = call.mutates and not nodes_in((call.node.args[1:], call.node.kwargs))
    return CONSTANT if in_place else nonlinear(call)


def compare(call: Call) -> Degree:
    """Does not scale, as long as both sides grow alike."""
    call.agree([call["self"], call["other"]], "Compare with 0, or with something that scales alike.")
    return CONSTANT


def normalise(call: Call) -> Degree | list[Degree]:
    """Degree 0 whatever comes in, then scale and shift by the affine parameters."""
    x = call.raw("input")
    groups = call["num_groups"] or call["group"]
    per_channel = call.operation in PER_CHANNEL or groups == call["input"].meta["val"].shape[1]
    if not (per_channel and apart(x, 1)):
        x = call.degree("input")
    training = call["training"] if "training" in call.arguments else call["use_input_stats"]
    if training is False or "no_training" in call.operation:
        call.require(call.degree("input"), "stored statistics", "Put the norm in training mode: module.train().")
    call.found.norms.append((call.node, x))
    scale = call.degree("weight")
    shifts = [] if call["bias"] is None else [call.degree("bias")]
    for vector in (scale, *shifts):
        call.found.affine |= set(zero_as_constant(vector))
    if call.operation not in NORMS_OF_AXES:
        return [call.shifted([1], scale, shifts), *_statistics(call)]
    if len(call["normalized_shape"]) > 1:
        return [call.found.agree(call.node, [scale, *shifts]), *_statistics(call)]
    return [call.shifted([call["input"].meta["val"].ndim - 1], scale, shifts), *_statistics(call)]


def _statistics(call: Call) -> list[Degree]:
    """Return the degrees of what else a norm gives: where something reads them, the mean of its input and 1 / deviation."""
    read = {user.args[1] for user in call.node.users if user.target is operator.getitem and user.users} - {0}
    others = len(tensors_of(call.node)) - 1
    if not read:
        return [CONSTANT] * others
    x = call.degree("input")
    if read - {1, 2}:  # running statistics
        call.require(x, "stored state", "Read the statistics of the batch.")
    known = [x, combine(CONSTANT, x, Fraction(-1))][-others:]  # the norm by root mean squares gives no mean
    return [*known, *[CONSTANT] * (others - len(known))]


def weight_norm(call: Call) -> list[Degree]:
    """Return the degree of g · v / ‖v‖: that of g, whatever v."""
    degrees: list[Degree] = [call.degree("g"), call.degree("v")]
    return degrees[: len(tensors_of(call.node))]


def cosine_similarity(call: Call) -> Degree:
    """Of degree 0, up to its eps."""
    for name in ("x1", "x2"):
        vector = call.degree(name)
        if vector:
            call.found.eps.append(Eps(call.node, call[name], vector, float(call["eps"])))
    return CONSTANT


def attention(call: Call) -> list[Degree]:
    """Linear in the values; the scores, products of queries and keys, go through a softmax."""
    x, alone = call.raw("key"), call.operation == "scaled_dot_product_attention"  # others give the sum of the softmax, too
    if isinstance(x, Shifted) and alone and call["key"].meta["val"].ndim - 2 not in x.axes:
        key = x.degree  # what is added to all keys, the softmax takes away
    else:
        key = call.degree("key")
    call.require(
        combine(call.degree("query"), key),
        "nonlinear",
        "Normalise queries and keys without trainable affine (QK norm), or freeze their projections.",
    )
    call.require(call.degree("attn_mask"), "nonlinear", "Freeze the attention bias.")
    return with_constants(call, call.degree("value"))


def matmul(call: Call, *factors: str) -> Degree:
    """Bilinear; what is added to all columns of the second matrix is added to all of a row of the product."""
    right, last = call.raw(factors[1]), call[factors[1]].meta["val"].ndim - 1
    if not isinstance(right, Shifted) or last == 0 or last in right.axes:
        return call.product(factors)
    by, rows = call.degree(factors[0]), range(call.node.meta["val"].ndim - 1)
    return call.shifted(rows, combine(by, right.degree), [combine(by, shift) for shift in right.shifts])


def einsum(call: Call) -> Degree:
    """Multilinear; what is added to one of two factors along some axes is added to the product along those, and the other's."""
    tensors, equation = call["tensors"], call["equation"].replace(" ", "")
    degrees = [call.found.degree(tensor) for tensor in tensors]
    shifted = [(index, degree) for index, degree in enumerate(degrees) if isinstance(degree, Shifted)]
    if len(shifted) != 1 or len(tensors) != 2 or "->" not in equation or "." in equation:
        return call.product(("tensors",))
    ((mine, x),) = shifted
    left, right = equation.split("->")
    names = left.split(",")
    by = call.agree([tensors[1 - mine]])
    seen_in = {names[mine][axis] for axis in x.axes} | set(names[1 - mine])
    axes = [axis for axis, name in enumerate(right) if name in seen_in]
    return call.shifted(axes, combine(by, x.degree), [combine(by, shift) for shift in x.shifts])


def softmax(call: Call) -> Degree:
    """As nonlinear; but what is added to all along its axis, it takes away."""
    x, dim = call.raw(call.first), call["dim"]
    if isinstance(x, Shifted) and isinstance(dim, int) and dim % call[call.first].meta["val"].ndim not in x.axes:
        call.require(x.degree, "nonlinear", SMOOTH)
        return CONSTANT
    return nonlinear(call)


def nonlinear(call: Call) -> Degree:
    """Not homogeneous: fine only where nothing that comes in scales."""
    call.insist("nonlinear", SMOOTH)
    return CONSTANT


def unknown(call: Call) -> Degree:
    """Whatever it does, it gives the same for the same arguments."""
    call.insist()
    return CONSTANT
