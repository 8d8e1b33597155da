"""Rules one by one: the degree of what an operation gives, held against numbers, and the conditions under which it has one."""

import math
from fractions import Fraction

import pytest
import torch
from torch import fx

from explr import scale_invariance
from explr.invariance.calls import Call
from explr.invariance.degrees import CONSTANT, Findings, Parts, Shifted
from explr.invariance.memory import place_of
from explr.invariance.rulebook import apply_rule

ATEN = torch.ops.aten
INF = math.inf


def vector(text):
    """Return a degree: "2a-b" is two of a and minus one of b; "" is constant."""
    found = {}
    for term in text.replace("-", "+-").split("+"):
        if term:
            count = term[:-1]
            found[term[-1]] = Fraction({"": "1", "-": "-1"}.get(count, count))
    return found


class X:
    """A tensor of a shape and a degree; positive, so that roots and logarithms are of numbers.

    With a shift: plus numbers of another degree that depend on the index along some axes alone.
    """

    def __init__(self, degree, *shape, value=None, shift=None, axes=(1,)):
        self.degree = None if degree is None else vector(degree)
        self.tensor = torch.rand(shape or (3, 4), dtype=torch.float64) + 0.5 if value is None else value
        self.shift, self.axes = shift, frozenset(axes)
        if shift is not None:
            self.added = torch.rand([n if i in axes else 1 for i, n in enumerate(self.tensor.shape)], dtype=torch.float64)
            self.plain, self.tensor = self.tensor, self.tensor + self.added

    def scaled(self, factors):
        total = growth(self.degree or {}, factors)
        if self.shift is not None:
            return self.plain * total + self.added * growth(vector(self.shift), factors)
        return self.tensor * total if self.tensor.is_floating_point() else self.tensor

    def written(self, node):
        shifted = self.shift is not None
        return Shifted(self.axes, self.degree, (vector(self.shift),), place_of(self.tensor), node) if shifted else self.degree


def growth(degree, factors):
    return math.prod(factors[name] ** float(power) for name, power in degree.items())


ZERO = X(None, value=torch.zeros(3, 4, dtype=torch.float64))
INDEX = X("", value=torch.tensor([0, 2, 1]))
MASK = X("", value=torch.tensor([[True, False, False, True]] * 3))


def replaced(tree, function):
    if isinstance(tree, list):
        return [replaced(one, function) for one in tree]
    return function(tree) if isinstance(tree, X) else tree


def applied(operation, arguments, options):
    """Apply the rule of a call; return what it gives, and what it found."""
    graph, found = fx.Graph(), Findings()

    def node_of(x):
        node = graph.placeholder("x")
        node.meta["val"] = x.tensor
        found.memory.write(x.tensor, x.written(node), lambda degrees: None, placed=x.shift is not None)
        return node

    torch.manual_seed(0)
    out = operation(
        *replaced(arguments, lambda x: x.tensor), **{k: replaced(v, lambda x: x.tensor) for k, v in options.items()}
    )
    node = graph.call_function(
        operation, tuple(replaced(arguments, node_of)), {k: replaced(v, node_of) for k, v in options.items()}
    )
    node.meta["val"] = out
    return apply_rule(Call(found, node)), found


def outputs(operation, arguments, options, factors):
    torch.manual_seed(0)
    out = operation(
        *replaced(arguments, lambda x: x.scaled(factors)),
        **{k: replaced(v, lambda x: x.scaled(factors)) for k, v in options.items()},
    )
    return list(out) if isinstance(out, list | tuple) else [out]


def case(operation, *arguments, gives, asks="", **options):
    """Say what an operation gives (degrees of its outputs, None where any will do) and which conditions it asks for."""
    given = gives if isinstance(gives, list) else [gives]
    return pytest.param(
        operation, list(arguments), options, [None if g is None else vector(g) for g in given],
        [vector(c) for c in asks.split()], id=f"{operation}-{len(arguments)}-{gives}-{asks}",
    )  # fmt: skip


def a(*shape):
    return X("a", *shape)


def b(*shape):
    return X("b", *shape)


def constant(*shape):
    return X("", *shape)


CASES = [
    # powers
    case(ATEN.sqrt.default, X("2a"), gives="a"),
    case(ATEN.sqrt.default, a(), gives="1/2a"),
    case(ATEN.rsqrt.default, a(), gives="-1/2a"),
    case(ATEN.reciprocal.default, a(), gives="-a"),
    case(ATEN.square.default, X("a+b"), gives="2a+2b"),
    case(ATEN.var.correction, a(), [1], gives="2a"),
    case(ATEN.var_mean.correction, a(), [1], gives=["2a", "a"]),
    case(ATEN.std_mean.correction, a(), [1], gives=["a", "a"]),
    case(ATEN.pow.Tensor_Scalar, a(), 3, gives="3a"),
    case(ATEN.pow.Tensor_Scalar, a(), 0.5, gives="1/2a"),
    case(ATEN.pow.Tensor_Scalar, a(), 0, gives=""),
    case(ATEN.pow.Tensor_Tensor, a(), b(), gives="", asks="a b"),
    case(ATEN.pow.Scalar, 2.0, a(), gives="", asks="a"),
    case(ATEN.prod.default, a(), gives="12a"),
    case(ATEN.prod.dim_int, a(), 1, gives="4a"),
    case(ATEN.linalg_vector_norm.default, a(), 0, gives=""),
    case(ATEN.linalg_vector_norm.default, a(), 2, gives="a"),
    case(ATEN.linalg_vector_norm.default, a(), 1, gives="a"),
    # linear in one argument
    case(ATEN.relu.default, a(), gives="a"),
    case(ATEN.neg.default, a(), gives="a"),
    case(ATEN.sum.dim_IntList, a(), [1], gives="a"),
    case(ATEN.cumsum.default, a(), 1, gives="a"),
    case(ATEN.index_select.default, a(), 0, INDEX, gives="a"),
    case(ATEN.max.dim, a(), 1, gives=["a", ""]),
    case(ATEN.topk.default, a(), 2, gives=["a", ""]),
    case(ATEN.max.other, a(), a(), gives="a"),
    case(ATEN.max.other, a(), b(), gives="a", asks="a-b"),
    case(ATEN.argmax.default, a(), gives=""),
    case(ATEN.sign.default, a(), gives=""),
    case(ATEN.zeros_like.default, a(), gives=None),
    case(ATEN.full_like.default, a(), 2.0, gives=""),
    case(ATEN.full_like.default, a(), 0.0, gives=None),
    case(ATEN.clone.default, ZERO, gives=None),
    case(ATEN.view.dtype, a(), torch.int64, gives="", asks="a"),
    # what a rule does not look at must not scale, unless it is only looked at for its shape, or overwritten
    case(ATEN.index_select.default, a(), 0, X("b", value=torch.tensor([0, 2, 1])), gives="a", asks="b"),
    case(ATEN.view_as.default, a(3, 4), b(4, 3), gives="a"),
    case(ATEN.zeros_like.default, b(), gives=None),
    case(ATEN.add.out, a(), a(), out=b(), gives="a"),
    # products and quotients
    case(ATEN.mul.Tensor, a(), b(), gives="a+b"),
    case(ATEN.mul.Tensor, a(), 3.0, gives="a"),
    case(ATEN.mm.default, a(3, 4), b(4, 5), gives="a+b"),
    case(ATEN.bmm.default, a(2, 3, 4), b(2, 4, 5), gives="a+b"),
    case(ATEN.linear.default, a(3, 4), b(5, 4), gives="a+b"),
    case(ATEN.einsum.default, "ij,kj->ik", [a(3, 4), b(5, 4)], gives="a+b"),
    case(ATEN.conv2d.default, a(2, 3, 5, 5), b(4, 3, 3, 3), gives="a+b"),
    case(ATEN.addmm.default, X("a+b", 3, 5), a(3, 4), b(4, 5), gives="a+b"),
    case(ATEN.addmm.default, X("b", 3, 5), a(3, 4), b(4, 5), gives="a+b", asks="a"),
    case(ATEN.addmm.default, X("b", 3, 5), a(3, 4), b(4, 5), beta=0, gives="a+b"),
    case(ATEN.addcmul.default, X("a+b"), a(), b(), gives="a+b"),
    case(ATEN.div.Tensor, a(), b(), gives="a-b"),
    case(ATEN.div.Tensor, a(), 2.0, gives="a"),
    case(ATEN.div.Tensor, a(), ZERO, gives="a"),
    case(ATEN.div.Tensor_mode, a(), b(), rounding_mode="floor", gives="", asks="a b"),
    case(ATEN.addcdiv.default, X("a-b"), a(), b(), gives="a-b"),
    case(ATEN.addcdiv.default, a(), a(), b(), gives="a-b", asks="-b"),
    case(ATEN.linalg_solve.default, a(4, 4), b(4, 4), gives="b-a"),
    case(ATEN.inverse.default, a(4, 4), gives="-a"),
    # sums
    case(ATEN.add.Tensor, a(), a(), gives="a"),
    case(ATEN.add.Tensor, a(), b(), gives="a", asks="a-b"),
    case(ATEN.add.Tensor, a(), ZERO, gives="a"),
    case(ATEN.add.Tensor, a(), 0.0, gives="a"),
    case(ATEN.add.Tensor, a(), 1.0, gives="a", asks="a"),
    case(ATEN.sub.Tensor, a(), b(), gives="a", asks="a-b"),
    case(ATEN.rsub.Scalar, a(), 1.0, gives="a", asks="a"),
    case(ATEN.maximum.default, a(), b(), gives="a", asks="a-b"),
    case(ATEN.stack.default, [a(), b()], gives="a", asks="a-b"),
    case(ATEN.cat.default, [a(), a()], gives="a"),
    case(ATEN.cat.default, [a(), ZERO], gives="a"),
    case(ATEN.cat.default, [a(), X("b", value=torch.zeros(0, dtype=torch.float64))], gives="a"),
    # one of several, and bounds
    case(ATEN.where.self, MASK, a(), a(), gives="a"),
    case(ATEN.where.self, MASK, a(), b(), gives="a", asks="a-b"),
    case(ATEN.where.self, X("b", value=torch.ones(3, 4, dtype=torch.bool)), a(), a(), gives="a", asks="b"),
    case(ATEN.masked_fill.Scalar, a(), MASK, 0.0, gives="a"),
    case(ATEN.masked_fill.Scalar, a(), MASK, -INF, gives="a"),
    case(ATEN.masked_fill.Scalar, a(), MASK, 1.0, gives="a", asks="a"),
    case(ATEN.index_copy.default, a(), 0, INDEX, a(), gives="a"),
    case(ATEN.index_copy.default, a(), 0, INDEX, b(), gives="a", asks="a-b"),
    case(ATEN.scatter_reduce.two, a(), 0, X("", value=torch.zeros(3, 4).long()), a(), "prod", gives="", asks="a"),
    case(ATEN.scatter_reduce.two, a(), 0, X("", value=torch.zeros(3, 4).long()), a(), "sum", gives="a"),
    case(ATEN.clamp.default, a(), 0.0, gives="a"),
    case(ATEN.clamp.default, a(), 1.0, gives="a", asks="a"),
    case(ATEN.clamp.default, a(), 0.0, 1.0, gives="a", asks="a"),
    case(ATEN.clamp.default, a(), None, INF, gives="a"),
    case(ATEN.clamp_min.default, a(), 0.0, gives="a"),
    case(ATEN.threshold.default, a(), 0.0, 0.0, gives="a"),
    case(ATEN.threshold.default, a(), 0.5, 0.0, gives="a", asks="a"),
    case(ATEN.constant_pad_nd.default, a(), [1, 1], 0.0, gives="a"),
    case(ATEN.constant_pad_nd.default, a(), [1, 1], 1.0, gives="a", asks="a"),
    case(ATEN.pad.default, a(2, 3, 4), [1, 1], "reflect", gives="a"),
    case(ATEN.pad.default, a(2, 3, 4), [1, 1], gives="a"),
    case(ATEN.reflection_pad1d.default, a(2, 3, 4), [1, 1], gives="a"),
    case(ATEN.lerp.Tensor, a(), a(), constant(), gives="a"),
    case(ATEN.lerp.Tensor, a(), X("2b"), b(), gives="a", asks="b a-2b"),
    case(ATEN.nan_to_num.default, a(), gives="a"),
    case(ATEN.nan_to_num.default, a(), 1.0, gives="a", asks="a"),
    case(ATEN.nan_to_num.default, a(), 0.0, 5.0, gives="a", asks="a"),
    case(ATEN.copy.default, a(), b(), gives="b"),
    case(ATEN.fill.Tensor, a(), X("b", value=torch.ones((), dtype=torch.float64)), gives="b"),
    case(ATEN.fill.Scalar, a(), 2.0, gives=""),
    case(ATEN.prelu.default, a(), constant(4), gives="a"),
    case(ATEN.prelu.default, a(), b(4), gives="a", asks="b"),
    case(ATEN.gt.Tensor, a(), a(), gives=""),
    case(ATEN.gt.Tensor, a(), b(), gives="", asks="a-b"),
    case(ATEN.gt.Scalar, a(), 0, gives=""),
    case(ATEN.gt.Scalar, a(), 1, gives="", asks="a"),
    case(ATEN.grid_sampler.default, a(1, 2, 4, 4), constant(1, 3, 3, 2), 0, 0, False, gives="a"),
    case(ATEN.grid_sampler.default, a(1, 2, 4, 4), b(1, 3, 3, 2), 0, 0, False, gives="a", asks="b"),
    # norms and attention
    case(ATEN.layer_norm.default, a(), [4], None, None, 0.0, gives=""),
    case(ATEN.layer_norm.default, a(), [4], b(4), None, 0.0, gives="b"),
    case(ATEN.batch_norm.default, a(), None, None, None, None, True, 0.1, 0.0, False, gives=""),
    case(ATEN.batch_norm.default, a(), b(4), b(4), None, None, True, 0.1, 0.0, False, gives="b"),
    case(ATEN.batch_norm.default, a(), None, None, constant(4), constant(4), False, 0.1, 0.0, False, gives="", asks="a"),
    case(ATEN.group_norm.default, a(2, 4, 5), 2, None, None, 0.0, gives=""),
    case(ATEN._weight_norm.default, a(3, 4), b(3, 1), 0, gives="b"),
    case(ATEN.scaled_dot_product_attention.default, constant(2, 3, 4), constant(2, 3, 4), a(2, 3, 4), gives="a"),
    case(ATEN.scaled_dot_product_attention.default, a(2, 3, 4), b(2, 3, 4), b(2, 3, 4), gives="b", asks="a+b"),
    case(ATEN.scaled_dot_product_attention.default, *[constant(2, 3, 4)] * 3, b(3, 3), gives="", asks="b"),
    case(ATEN.linalg_eigh.default, X("a", value=torch.diag(torch.arange(1.0, 5.0).double())), gives=["a", ""]),
    case(ATEN.layer_norm.default, a(2, 3, 4), [3, 4], b(3, 4), b(3, 4), 0.0, gives="b"),
    case(ATEN.layer_norm.default, a(2, 3, 4), [3, 4], b(3, 4), X("2b", 3, 4), 0.0, gives="b", asks="-b"),
    case(ATEN.instance_norm.default, a(2, 3, 4), None, None, None, None, True, 0.1, 0.0, False, gives=""),
    case(ATEN.linalg_svd.default, a(3, 3), gives=["", "a", ""]),
    case(ATEN.linalg_qr.default, a(3, 3), gives=["", "a"]),
    case(ATEN._embedding_bag.default, a(5, 4), INDEX, X("", value=torch.tensor([0, 2])), gives=["a", "", "", ""]),
    case(ATEN.rand_like.default, a(), gives=""),
    # not homogeneous
    case(ATEN.softmax.int, a(), 1, gives="", asks="a"),
    case(ATEN.gelu.default, a(), gives="", asks="a"),
    case(ATEN.gelu.default, constant(), gives=""),
    case(ATEN.exp.default, X("a+b"), gives="", asks="a+b"),
    case(ATEN.i0.default, a(), gives="", asks="a"),
]


@pytest.mark.parametrize("operation, arguments, options, gives, asks", CASES)
def test_a_rule_gives_the_degree_that_numbers_have(operation, arguments, options, gives, asks):
    degrees, found = applied(operation, arguments, options)
    degrees = degrees if isinstance(degrees, list) else [degrees]
    assert degrees[: len(gives)] == gives
    assert [condition.vector for condition in found.conditions] == asks
    if not asks:
        factors = {"a": 2.0, "b": 0.25}
        before, after = (outputs(operation, arguments, options, of) for of in ({"a": 1.0, "b": 1.0}, factors))
        for degree, one, other in zip(gives, before, after, strict=False):
            expected = one * growth(degree or {}, factors)
            torch.testing.assert_close(other, expected.to(other.dtype), rtol=1e-12, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "operation, arguments, size",
    [
        (ATEN.add.Tensor, [a(), 1e-5], 1e-5),
        (ATEN.add.Tensor, [a(), 1e-3], 1e-3),
        (ATEN.sub.Tensor, [a(), -1e-5], 1e-5),
        (ATEN.clamp.default, [a(), 1e-6], 1e-6),
        (ATEN.clamp_min.default, [a(), 1e-6], 1e-6),
    ],
)
def test_a_tiny_constant_beside_what_scales_is_taken_for_an_eps(operation, arguments, size):
    degree, found = applied(operation, arguments, {})
    assert degree == vector("a") and found.conditions == []
    (eps,) = found.eps
    assert (eps.eps, eps.vector) == (size, vector("a")) and eps.operand is eps.node.args[0]


@pytest.mark.parametrize("arguments, options", [([a(), 1.1e-3], {}), ([a(), 1e-5], {"alpha": 1e3}), ([constant(), 1e-5], {})])
def test_what_is_larger_or_beside_what_does_not_scale_is_no_eps(arguments, options):
    _, found = applied(ATEN.add.Tensor, arguments, options)
    assert found.eps == [] and len(found.conditions) == (arguments[0].degree != {})


def test_the_eps_of_a_cosine_is_noted_for_each_side_that_scales():
    degree, found = applied(ATEN.cosine_similarity.default, [a(), constant(), 1, 1e-7], {})
    assert degree == CONSTANT and [(eps.eps, eps.vector) for eps in found.eps] == [(1e-7, vector("a"))]
    assert found.eps[0].operand is found.eps[0].node.args[0]


@pytest.mark.parametrize("dim, axis", [(0, 0), (1, 1), (-1, 1)])
def test_what_differs_is_put_side_by_side_in_parts(dim, axis):
    degree, found = applied(ATEN.cat.default, [[a(), b(), ZERO], dim], {})
    assert isinstance(degree, Parts) and (degree.axis, degree.parts) == (axis, (vector("a"), vector("b"), None))
    assert found.conditions == []


def test_the_norms_and_their_parameters_are_noted():
    x, weight, bias = a(3, 4), X("b", 4), X("c", 4)
    degree, found = applied(ATEN.layer_norm.default, [x, [4], weight, bias, 1e-5], {})
    assert (degree[0].degree, degree[0].shifts, degree[0].axes) == (vector("b"), (vector("c"),), frozenset((1,)))
    assert found.affine == {"b", "c"} and [norm[1] for norm in found.norms] == [vector("a")]
    degree, found = applied(ATEN.batch_norm.default, [a(2, 4, 3), weight, bias, None, None, True, 0.1, 1e-5, False], {})
    assert (degree[0].axes, found.conditions) == (frozenset((1,)), [])


@pytest.mark.parametrize(
    "operation, arguments, kind, remedy",
    [
        (ATEN.gelu.default, [a()], "nonlinear", "Put a norm without trainable affine before it"),
        (
            ATEN.index_select.default,
            [a(), 0, X("b", value=torch.tensor([0, 2, 1]))],
            "unknown operation",
            "Check it by numbers with explr.lemma1",
        ),
        (ATEN.i0.default, [a()], "unknown operation", "Check it by numbers with explr.lemma1"),
        (ATEN.gt.Scalar, [a(), 1], "unequal degrees", "Compare with 0, or with something that scales alike."),
        (ATEN.prelu.default, [a(), b(4)], "nonlinear", "Freeze the slope."),
        (
            ATEN.batch_norm.default,
            [a(), None, None, constant(4), constant(4), False, 0.1, 0.0, False],
            "stored statistics",
            "Put the norm in training mode: module.train().",
        ),
        (
            ATEN.scaled_dot_product_attention.default,
            [a(2, 3, 4)] * 3,
            "nonlinear",
            "Normalise queries and keys without trainable affine (QK norm), or freeze their projections.",
        ),
    ],
)
def test_a_condition_says_what_would_mend_it(operation, arguments, kind, remedy):
    _, found = applied(operation, arguments, {})
    assert found.conditions[0].kind == kind and found.conditions[0].remedy.startswith(remedy)
    assert "XX" not in found.conditions[0].remedy


def s(*shape, axes=(1,), degree="a", shift="c"):
    return X(degree, *shape, shift=shift, axes=axes)


def kept(operation, *arguments, axes=(1,), degree="a", shifts=("c",), **options):
    """Say that what is added along some axes stays apart: along which, and of which degrees."""
    label = f"{operation}-{axes}-{degree}-{shifts}-{len(arguments)}"
    return pytest.param(operation, list(arguments), options, set(axes), vector(degree), tuple(map(vector, shifts)), id=label)


KEPT = [
    kept(ATEN.neg.default, s()),
    kept(ATEN.clone.default, s(axes=(0,)), axes=(0,)),
    kept(ATEN.mul.Tensor, s(), 2.0),
    kept(ATEN.div.Tensor, s(), 2.0),
    kept(ATEN.add.Tensor, s(), a()),
    kept(ATEN.add.Tensor, a(), s()),
    kept(ATEN.sub.Tensor, s(), s(shift="d"), shifts=("c", "d")),
    kept(ATEN.add.Tensor, s(2, 3, 4, axes=(1,)), s(2, 3, 4, axes=(2,)), axes=(1, 2)),
    kept(ATEN.linear.default, s(), constant(5, 4)),
    kept(ATEN.linear.default, s(), b(5, 4), degree="a+b", shifts=("b+c",)),
    kept(ATEN.linear.default, s(), b(5, 4), X("d", 5), degree="a+b", shifts=("b+c", "d")),
    kept(ATEN.linear.default, a(), b(5, 4), X("c", 5), degree="a+b"),
    kept(ATEN.linear.default, a(2, 3, 4), b(5, 4), X("c", 5), axes=(2,), degree="a+b"),
    kept(ATEN.conv2d.default, a(2, 3, 5, 5), b(4, 3, 3, 3), X("c", 4), degree="a+b"),
    kept(ATEN.conv2d.default, a(2, 3, 5, 5), b(4, 3, 3, 3), X("c", 4), [1, 1], [1, 1], degree="a+b"),
    kept(ATEN.conv1d.default, s(2, 3, 5), b(4, 3, 3), degree="a+b", shifts=("b+c",)),
    kept(ATEN.conv1d.padding, s(2, 3, 5), b(4, 3, 3), None, [1], "valid", degree="a+b", shifts=("b+c",)),
    kept(ATEN.max_pool1d.default, s(2, 3, 8), [2]),
    kept(ATEN.avg_pool1d.default, s(2, 3, 8), [2]),
    kept(ATEN.avg_pool1d.default, s(2, 3, 8), [2], [2], [1], False, False),
    kept(ATEN.adaptive_avg_pool1d.default, s(2, 3, 8), [2]),
    kept(ATEN.reflection_pad1d.default, s(2, 3, 8), [1, 1]),
    kept(ATEN.pad.default, s(2, 3, 8), [1, 1], "replicate"),
    kept(ATEN.matmul.default, b(2, 3), s(3, 4, axes=(0,)), axes=(0,), degree="a+b", shifts=("b+c",)),
    kept(ATEN.bmm.default, b(2, 5, 3), s(2, 3, 4, axes=(0, 1)), axes=(0, 1), degree="a+b", shifts=("b+c",)),
    kept(ATEN.einsum.default, "ij,jk->ik", [b(2, 3), s(3, 4, axes=(0,))], axes=(0,), degree="a+b", shifts=("b+c",)),
    kept(ATEN.einsum.default, "jk, ij -> ki", [s(3, 4, axes=(1,)), b(2, 3)], axes=(0, 1), degree="a+b", shifts=("b+c",)),
]


@pytest.mark.parametrize("operation, arguments, options, axes, degree, shifts", KEPT)
def test_what_is_added_along_an_axis_stays_apart_as_in_numbers(operation, arguments, options, axes, degree, shifts):
    given, found = applied(operation, arguments, options)
    assert isinstance(given, Shifted) and (given.axes, given.degree, given.shifts) == (axes, degree, shifts)
    assert found.conditions == []
    factors = {"a": 2.0, "b": 0.5, "c": 4.0, "d": 8.0}
    (before,), (after,) = (outputs(operation, arguments, options, of) for of in (dict.fromkeys(factors, 1.0), factors))
    rest = after - before * growth(degree, factors)  # what does not grow so depends on those axes alone
    others = [axis for axis in range(rest.ndim) if axis not in axes]
    if others:
        torch.testing.assert_close(rest, rest.mean(others, keepdim=True).expand_as(rest), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "operation, arguments, asks",
    [
        (ATEN.sum.dim_IntList, [s(), [1]], "a-c"),
        (ATEN.mul.Tensor, [s(), b()], "a-c"),
        (ATEN.linear.default, [s(axes=(0,)), constant(5, 4)], "a-c"),
        (ATEN.conv1d.default, [s(2, 3, 5), b(4, 3, 3), None, [1], [1]], "a-c"),
        (ATEN.conv1d.padding, [s(2, 3, 5), b(4, 3, 3), None, [1], "same"], "a-c"),
        (ATEN.conv1d.default, [s(2, 3, 5, axes=(2,)), b(4, 3, 3)], "a-c"),
        (ATEN.avg_pool1d.default, [s(2, 3, 8), [2], [2], [1]], "a-c"),
        (ATEN.avg_pool1d.default, [s(2, 3, 8, axes=(2,)), [2]], "a-c"),
        (ATEN.matmul.default, [b(2, 3), s(3, 4)], "a-c"),
        (ATEN.einsum.default, ["ij,jk->ik", [s(2, 3), s(3, 4)]], "a-c a-c"),
        (ATEN.softmax.int, [s(), 0], "a"),
        (ATEN.softmax.int, [s(), -2], "a"),
        (ATEN.softmax.int, [s(), 1], "a-c a"),
        (ATEN.masked_fill.Scalar, [s(), MASK, 0.0], "a-c"),
        (ATEN.layer_norm.default, [s(), [4], None, None, 0.0], "a-c"),
        (ATEN.group_norm.default, [s(2, 4, 5), 2, None, None, 0.0], "a-c"),
        (ATEN.constant_pad_nd.default, [s(2, 3, 8), [1, 1], 0.0], "a-c"),
        (ATEN.add.Tensor, [s(), b()], "a-b"),
    ],
)
def test_what_is_added_along_an_axis_must_grow_alike_elsewhere(operation, arguments, asks):
    _, found = applied(operation, arguments, {})
    assert [condition.vector for condition in found.conditions] == [vector(one) for one in asks.split()]


@pytest.mark.parametrize(
    "operation, arguments",
    [
        (ATEN.batch_norm.default, [s(), None, None, None, None, True, 0.1, 0.0, False]),
        (ATEN.group_norm.default, [s(2, 4, 5), 4, None, None, 0.0]),
    ],
)
def test_a_norm_per_channel_takes_away_what_is_added_to_a_channel(operation, arguments):
    degree, found = applied(operation, arguments, {})
    assert degree[0] == CONSTANT and found.conditions == []
    before, after = (outputs(operation, arguments, {}, {"a": 2.0, "c": c}) for c in (1.0, 64.0))
    torch.testing.assert_close(before, after, rtol=1e-9, atol=1e-9)


def test_what_is_masked_out_may_be_shifted():
    degree, found = applied(ATEN.masked_fill.Scalar, [s(), MASK, -INF], {})
    assert isinstance(degree, Shifted) and degree.axes == {1} and found.conditions == []


def test_what_all_keys_have_in_common_a_softmax_takes_away():
    arguments = [constant(2, 3, 4), s(2, 5, 4, axes=(0, 2), degree="", shift="c"), b(2, 5, 4)]
    degrees, found = applied(ATEN.scaled_dot_product_attention.default, arguments, {})
    assert (degrees, found.conditions) == ([vector("b")], [])
    before, after = (outputs(ATEN.scaled_dot_product_attention.default, arguments, {}, {"b": 1.0, "c": c}) for c in (1.0, 3.0))
    torch.testing.assert_close(before, after, rtol=1e-9, atol=1e-9)
    _, found = applied(ATEN.scaled_dot_product_attention.default, [constant(2, 3, 4), s(2, 5, 4), b(2, 5, 4)], {})
    assert [condition.vector for condition in found.conditions] == [vector("a-c"), vector("a")]


class Reads(torch.nn.Module):
    """Gives one of the outputs of a norm."""

    def __init__(self, norm, index):
        super().__init__()
        self.linear, self.norm, self.index = torch.nn.Linear(4, 4, bias=False), norm, index

    def forward(self, x):
        return self.norm(self.linear(x))[self.index]


@pytest.mark.parametrize("index, degree", [(0, 0), (1, 1), (2, -1)])
@pytest.mark.parametrize(
    "norm",
    [
        lambda x: torch.native_layer_norm(x, [4], None, None, 0.0),
        lambda x: torch.native_group_norm(x.unsqueeze(2).contiguous(), None, None, 6, 4, 1, 2, 0.0),
        lambda x: torch.native_batch_norm(x, None, None, None, None, True, 0.1, 0.0),
    ],
    ids=["layer", "group", "batch"],
)
def test_mean_and_deviation_that_a_norm_gives_besides_go_with_its_input(norm, index, degree):
    report = scale_invariance(Reads(norm, index).double(), torch.randn(6, 4, dtype=torch.float64), verify=False)
    assert report.degree == degree and report.invariant == (degree == 0)
