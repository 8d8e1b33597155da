"""Rules one by one: the degree of what an operation gives, held against numbers, and the conditions under which it has one."""

import math
from fractions import Fraction

import pytest
import torch
from torch import fx

from explr.invariance.calls import Call
from explr.invariance.degrees import CONSTANT, Findings, Parts
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
    """A tensor of a shape and a degree; positive, so that roots and logarithms are of numbers."""

    def __init__(self, degree, *shape, value=None):
        self.degree = None if degree is None else vector(degree)
        self.tensor = torch.rand(shape or (3, 4), dtype=torch.float64) + 0.5 if value is None else value

    def scaled(self, factors):
        total = math.prod(factors[name] ** float(power) for name, power in (self.degree or {}).items())
        return self.tensor * total if self.tensor.is_floating_point() else self.tensor


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
        found.memory.write(x.tensor, x.degree, lambda degrees: None)
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
            expected = one * math.prod(factors[name] ** float(power) for name, power in (degree or {}).items())
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
