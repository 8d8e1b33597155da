"""Degrees as numbers, and calls of single operations: no network, no export."""

import math
import operator
from fractions import Fraction

import pytest
import torch
from torch import fx

from explr import ExplrError
from explr.invariance.calls import Call
from explr.invariance.degrees import (
    CONSTANT,
    Findings,
    Parts,
    Shifted,
    apart,
    combine,
    degree_of_constant,
    distinct_vectors,
    in_words,
    total_degree,
    vectors_of,
)
from explr.invariance.graph import source_line
from explr.invariance.memory import place_of

A, B = {"a": Fraction(1)}, {"b": Fraction(2)}
AB = {"a": Fraction(1), "b": Fraction(2)}
ATEN = torch.ops.aten
GRAPH = fx.Graph()


def tensor_node(*shape, value=None):
    """Return a node that stands for a tensor."""
    node = GRAPH.placeholder("x")
    node.meta["val"] = torch.zeros(shape) if value is None else value
    return node


def found_with(*pairs):
    """Return findings in which the tensors of nodes have these degrees."""
    found = Findings()
    for node, degree in pairs:
        found.memory.write(node.meta["val"], degree, lambda degrees: None)
    return found


def call_of(target, *arguments, found=None, value=None, **options):
    node = GRAPH.call_function(target, arguments, options)
    node.meta["val"] = torch.zeros(3, 4) if value is None else value
    return Call(found or Findings(), node)


def parts(*vectors, axis=1):
    return Parts(axis, vectors, GRAPH.placeholder("p"))


def shifted(degree, *shifts, axes=(1,)):
    return Shifted(frozenset(axes), degree, shifts, None, GRAPH.placeholder("s"))


# ---- numbers


def test_degrees_of_a_product_add_and_what_cancels_goes():
    assert combine(A, B) == AB and combine(AB, B, Fraction(-1)) == A and combine(A, A, Fraction(-1)) == CONSTANT == {}
    assert combine(A, A) == {"a": 2} and combine(CONSTANT, B, Fraction(1, 2)) == {"b": 1}
    assert combine(A, B, Fraction(3)) == {"a": 1, "b": 6}
    assert combine(None, A) is None and combine(A, None) is None and combine(None, None) is None


def test_the_degree_when_some_scale_together_is_the_sum_of_theirs():
    assert total_degree(AB) == 3 and total_degree(AB, {"b"}) == 2 and total_degree(AB, set()) == 0 == total_degree({})
    assert isinstance(total_degree({}), Fraction) and total_degree(A, {"b", "a"}) == 1


@pytest.mark.parametrize(
    "value, degree",
    [
        (1.0, CONSTANT),
        (0, None),
        (0.0, None),
        (0j, None),
        (math.inf, None),
        (-math.inf, None),
        (1j, CONSTANT),
        (math.nan, CONSTANT),
        (torch.zeros(2), None),
        (torch.zeros(1), None),
        (torch.tensor([0.0, math.inf]), None),
        (torch.tensor([0.0, 1.0]), CONSTANT),
        (torch.zeros(0), CONSTANT),
        (torch.zeros(2, dtype=torch.bool), CONSTANT),
        (torch.zeros(2, device="meta"), CONSTANT),
        (torch.zeros(2).to_sparse(), CONSTANT),
    ],
    ids=str,
)
def test_a_constant_has_a_degree_unless_it_is_0_or_infinite(value, degree):
    assert degree_of_constant(value) == degree


def test_degrees_are_told_in_words():
    assert in_words(None) == "any" and in_words(CONSTANT) == "0" and in_words(AB) == "3"
    assert in_words({"a": Fraction(1, 2)}) == "1/2"
    assert in_words(parts(A, B, A, None)) == "1 | 2 | any"
    assert in_words(shifted(B, A, CONSTANT)) == "2 + 1 + 0" and in_words(shifted(None, A)) == "any + 1"
    assert in_words(parts(shifted(B, A), A)) == "2 + 1 | 1"


def test_a_tensor_of_parts_has_the_degrees_of_all():
    assert vectors_of(A) == [A] and vectors_of(None) == [None]
    assert vectors_of(shifted(A, B, CONSTANT)) == [A, B, CONSTANT]
    assert vectors_of(parts(A, shifted(B, A), None)) == [A, B, A, None]


def test_what_differs_along_one_axis_is_told_apart_by_it():
    assert apart(A, 1) and apart(None, 5)
    assert apart(shifted(A, B, axes=(1,)), 1) and apart(shifted(A, B, axes=()), 1)
    assert not apart(shifted(A, B, axes=(0, 1)), 1) and not apart(shifted(A, B, axes=(2,)), 1)
    assert apart(parts(A, B), 1) and not apart(parts(A, B), 2)
    assert apart(parts(A, shifted(A, B, axes=(1,))), 1) and not apart(parts(A, shifted(A, B, axes=(2,))), 1)


def test_distinct_degrees_are_counted_once_and_zeros_not_at_all():
    assert distinct_vectors([A, None, {"a": Fraction(1)}, B]) == (A, B)
    assert distinct_vectors([parts(A, None), shifted(B, A)]) == (A, B)
    assert distinct_vectors([]) == distinct_vectors([None]) == (CONSTANT,)
    assert distinct_vectors([CONSTANT, A]) == (CONSTANT, A)


# ---- conditions


def test_what_must_be_equal_gives_the_condition_that_the_difference_is_0():
    found, node = Findings(), tensor_node(2)
    assert found.agree(node, [A, None, A]) == A and found.conditions == []
    assert found.agree(node, []) is None and found.agree(node, [None, None]) is None
    assert found.agree(node, iter([A, B]), "freeze it") == A
    (condition,) = found.conditions
    assert condition.vector == {"a": 1, "b": -2} and condition.met == (A, B) and condition.node is node
    assert (condition.kind, condition.remedy) == ("unequal degrees", "freeze it")
    assert found.agree(node, [CONSTANT, B]) == CONSTANT
    assert found.conditions[1].vector == {"b": -2} and found.conditions[1].remedy == ""


def test_all_are_compared_with_the_first():
    found = Findings()
    found.agree(tensor_node(2), [A, A, B, CONSTANT])
    assert [condition.vector for condition in found.conditions] == [{"a": 1, "b": -2}, A]


def test_parts_that_differ_are_the_fault_of_what_put_them_together():
    found, pieces = Findings(), parts(A, B)
    assert found.agree(tensor_node(2), [pieces]) == A
    assert [condition.node for condition in found.conditions] == [pieces.node]
    moved = shifted(A, B)
    assert found.agree(tensor_node(2), [moved]) == A
    assert found.conditions[1].node is moved.node


def test_a_condition_is_collected_once_for_each_operation():
    found, node, other = Findings(), tensor_node(2), tensor_node(2)
    for _ in range(2):
        found.require(A, "nonlinear", node, "freeze it")
        found.require(B, "nonlinear", node, "freeze it")
        found.require(A, "nonlinear", other, "freeze it")
    assert [(c.vector, c.node) for c in found.conditions] == [(A, node), (B, node), (A, other)]
    assert (found.conditions[0].met, found.conditions[0].kind, found.conditions[0].remedy) == ((A,), "nonlinear", "freeze it")
    found.require(CONSTANT, "nonlinear", node, "")
    found.require(None, "nonlinear", node, "")
    assert len(found.conditions) == 3
    found.require(A, "large", tensor_node(2), "", (B,))
    assert found.conditions[3].met == (B,)


# ---- tensors


def test_numbers_and_sizes_are_constants():
    found, size = Findings(), tensor_node(2)
    size.meta["val"] = 7
    assert found.degree(size) == CONSTANT and found.degree("mean") == CONSTANT and found.degree(None) == CONSTANT
    assert (
        found.degree(2) == CONSTANT and found.degree(0) is None and found.degree(0j) is None and found.degree(math.inf) is None
    )
    assert found.degree(GRAPH.placeholder("nothing known")) == CONSTANT


def test_a_tensor_has_the_degree_that_was_written_to_its_memory():
    whole = tensor_node(4, 6)
    found = found_with((whole, A))
    assert found.degree(whole) == A
    view = tensor_node(value=whole.meta["val"][1:, 2])
    assert found.degree(view) == A
    zeros = tensor_node(3)
    assert found_with((zeros, None)).degree(zeros) is None
    assert found.degree(tensor_node(value=whole.meta["val"][:0])) is None  # of nothing


def test_memory_of_two_degrees_is_a_tensor_in_parts_that_no_axis_tells_apart():
    whole = torch.zeros(4, 6)
    node, first, second = (tensor_node(value=value) for value in (whole, whole[:2], whole[2:]))
    found = found_with((first, A), (second, B))
    degree = found.degree(node)
    assert isinstance(degree, Parts) and (degree.axis, set(map(str, degree.parts))) == (-1, {str(A), str(B)})
    assert degree.node is node
    assert found.degree(second) == B
    rest = found_with((first, A)).degree(node)  # what nobody wrote is a constant
    assert isinstance(rest, Parts) and set(map(str, rest.parts)) == {str(A), str(CONSTANT)}


def test_a_shift_is_seen_along_the_axes_of_the_view_that_looks():
    value = torch.zeros(4, 6)
    node, turned = tensor_node(value=value), tensor_node(value=value.T)
    degree = Shifted(frozenset((1,)), A, (B,), place_of(value), node)
    found = found_with((node, degree))
    assert found.degree(node) == degree
    seen = found.degree(turned)
    assert isinstance(seen, Shifted) and (seen.axes, seen.place) == (frozenset((0,)), place_of(value.T))
    assert (seen.degree, seen.shifts) == (A, (B,))
    lost = found.degree(tensor_node(value=value.view(3, 8)))
    assert isinstance(lost, Parts) and (lost.axis, lost.parts, lost.node) == (-1, (A, B), node)


def test_a_tensor_that_nobody_wrote_cannot_be_followed():
    node = GRAPH.call_function(ATEN.relu.default, (tensor_node(2),))
    node.meta["val"] = torch.zeros(2)
    with pytest.raises(ExplrError) as caught:
        Findings().degree(node)
    said = "relu gives a tensor that the analysis of scale invariance cannot follow"
    assert str(caught.value) == f"{said}. Use explr.lemma1, which goes by numbers."
    node.meta["stack_trace"] = '  File "/home/me/net.py", line 7, in forward\n    return x.relu()'
    with pytest.raises(ExplrError) as caught:
        Findings().degree(node)
    assert str(caught.value) == f"{said} at {source_line(node)}. Use explr.lemma1, which goes by numbers."
    assert source_line(node) == "net.py:7: return x.relu()"


def test_at_first_nothing_is_found():
    found = Findings()
    assert (found.conditions, found.eps, found.norms, found.affine) == ([], [], [], set())


# ---- calls


def test_a_call_has_its_arguments_by_name_and_notes_which_were_asked_for():
    x, y = tensor_node(3, 4), tensor_node(3, 4)
    call = call_of(ATEN.add.Tensor, x, y)
    assert (call.operation, call.names, call.first, call.mutates, call.is_view) == (
        "add",
        ["self", "other", "alpha"],
        "self",
        False,
        False,
    )
    assert call["self"] is x and call["alpha"] == 1 and call["nothing"] is None
    assert call.consulted == {"self", "alpha", "nothing"}
    assert call_of(ATEN.add_.Tensor, x, y).mutates is True and call_of(ATEN.t.default, x).is_view is True
    call = call_of(operator.getitem, x, 0)  # no operation of ATen
    assert (call.names, call.arguments, call.mutates, call.is_view) == ([], {}, False, False)


def test_degrees_of_arguments_agree_join_and_multiply():
    x, y, z = tensor_node(3, 4), tensor_node(3, 4), tensor_node(3, 4)
    found = found_with((x, A), (y, B), (z, AB))
    call = call_of(ATEN.addcmul.default, z, x, y, found=found)
    assert call.raw("tensor1") == call.degree("tensor1") == A
    assert call.product(["tensor1", "tensor2"]) == AB and call.product([]) == CONSTANT
    assert call.join(call.product(["tensor1", "tensor2"]), "self") == AB and found.conditions == []
    assert call.agree([x, y], "freeze it") == A
    assert (found.conditions[0].remedy, found.conditions[0].node) == ("freeze it", call.node)
    assert call.join(A, "out") == A and len(found.conditions) == 1  # there is none
    assert call.join(B, "self") == B and found.conditions[1].vector == {"a": -1}
    assert found.conditions[1].node is call.node
    call.agree([y, x])
    assert found.conditions[2].remedy == ""
    many = call_of(ATEN.einsum.default, "ij,jk,kl->il", [x, y, x], found=found)
    assert many.product(["tensors"]) == {"a": 2, "b": 2}
    assert call_of(ATEN.linear.default, x, y, found=found).product(["input", "weight", "bias"]) == AB


def test_what_is_added_along_an_axis_is_kept_apart_from_what_it_is_added_to():
    call = call_of(ATEN.relu.default, tensor_node(3, 4))
    degree = call.shifted([1], A, [B, B, None, A, CONSTANT])
    assert isinstance(degree, Shifted) and (degree.axes, degree.degree, degree.shifts) == (frozenset((1,)), A, (B, CONSTANT))
    assert degree.place == place_of(call.node.meta["val"]) is not None and degree.node is call.node
    assert call.shifted([1], A, [A, None]) == A and call.shifted([1], None, []) is None
    given = call.given(Shifted(frozenset((0,)), A, (B,), None, call.node))
    assert given == Shifted(frozenset((0,)), A, (B,), degree.place, call.node)
    assert call.given(A) == A and call.given(None) is None


def test_to_insist_is_to_ask_that_nothing_scales():
    x, y = tensor_node(3, 4), tensor_node(3, 4)
    found = found_with((x, A), (y, CONSTANT))
    call = call_of(ATEN.add.Tensor, x, y, alpha=2, found=found)
    assert call["nothing"] is None
    call.insist()
    assert call.consulted == {"self", "other", "alpha", "nothing"}
    (condition,) = found.conditions
    assert (condition.vector, condition.kind, condition.node) == (A, "unknown operation", call.node)
    assert condition.remedy == "Check it by numbers with explr.lemma1, or write it in operations that have a rule."
    call = call_of(ATEN.mul.Tensor, y, x, found=found)
    call.insist("nonlinear", "freeze it")
    assert (found.conditions[1].kind, found.conditions[1].remedy) == ("nonlinear", "freeze it")
    call.require(B, "large", "lower it")
    assert (found.conditions[2].vector, found.conditions[2].kind, found.conditions[2].remedy) == (B, "large", "lower it")
    assert found.conditions[2].node is call.node
