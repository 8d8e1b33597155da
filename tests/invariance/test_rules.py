"""Rules one by one: the degree of what an operation gives, held against numbers, and the conditions under which it has one."""

import itertools
import math
import operator
import random
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
import torchvision
from torch import fx

from explr import scale_invariance
from explr.invariance import rulebook, rules
from explr.invariance.calls import BY_NUMBERS, Call
from explr.invariance.degrees import Findings, Parts, Shifted
from explr.invariance.graph import tensors_of
from explr.invariance.memory import place_of
from explr.invariance.rulebook import apply_rule
from explr.invariance.rules import ADDED, BOUNDED, SMOOTH

ATEN, VISION = torch.ops.aten, torch.ops.torchvision
INF = math.inf
assert torchvision  # whose operations these are
CHANCE = torch.Generator().manual_seed(0)


# ---- what goes into an operation, what is expected of it, and what it gives when its arguments grow


def positive(*shape):
    return torch.rand(shape or (3, 4), dtype=torch.float64, generator=CHANCE) + 0.5


def either_sign(*shape):
    return torch.randn(shape or (3, 4), dtype=torch.float64, generator=CHANCE)


def vector(text):
    """Return a degree: "2a-b" is two of a and minus one of b; "" is constant."""
    found = {}
    for term in text.replace("-", "+-").split("+"):
        if term:
            count = term[:-1]
            found[term[-1]] = Fraction({"": "1", "-": "-1"}.get(count, count))
    return found


def growth(degree, factors):
    return math.prod(factors[name] ** float(power) for name, power in (degree or {}).items())


class X:
    """A tensor of a shape and a degree; positive by default, so that roots and logarithms are of numbers."""

    def __init__(self, degree, *shape, value=None):
        self.degree, self.drawn = None if degree is None else vector(degree), value is None
        self.tensor = positive(*shape) if value is None else value

    def scaled(self, factors):
        return (
            self.tensor * growth(self.degree, factors)
            if self.tensor.is_floating_point() or self.tensor.is_complex()
            else self.tensor.clone()
        )

    def written(self, node):
        return self.degree


class S(X):
    """A tensor of either sign plus numbers of another degree that depend on the index along some axes alone."""

    def __init__(self, *shape, axes=(1,), degree="a", shift="c", value=None):
        super().__init__(degree, value=either_sign(*shape) if value is None else value)
        self.axes, self.shift, self.plain = frozenset(axes), vector(shift), self.tensor
        self.added = either_sign(*(n if i in axes else 1 for i, n in enumerate(self.plain.shape)))
        self.tensor = self.plain + self.added

    def scaled(self, factors):
        return self.plain * growth(self.degree, factors) + self.added * growth(self.shift, factors)

    def written(self, node):
        return Shifted(self.axes, self.degree, (self.shift,), place_of(self.tensor), node)


class P(X):
    """Tensors side by side."""

    def __init__(self, axis, *parts):
        self.axis, self.parts = axis, parts
        self.tensor = torch.cat([part.tensor for part in parts], axis)

    def scaled(self, factors):
        return torch.cat([part.scaled(factors) for part in self.parts], self.axis)

    def written(self, node):
        parts = [part.written(node) for part in self.parts]
        return Parts(self.axis, tuple(replace(x, place=None) if isinstance(x, Shifted) else x for x in parts), node)


def a(*shape):
    return X("a", *shape)


def b(*shape):
    return X("b", *shape)


def constant(*shape):
    return X("", *shape)


def given(value, degree=""):
    return X(degree, value=torch.as_tensor(value))


def zeros(*shape):
    return X(None, value=torch.zeros(shape or (3, 4), dtype=torch.float64))


ZERO = zeros()
EMPTY = zeros(0)
INDEX = given([0, 2, 1])
MASK = given([[True, False, False, True]] * 3)


def shifted(degree, *shifts, axes=(1,)):
    """What a rule gives that keeps apart what is added along some axes."""
    return Shifted(frozenset(axes), None if degree is None else vector(degree), tuple(map(vector, shifts)), None, None)


def side_by_side(axis, *parts):
    """What a rule gives that keeps parts apart along an axis."""
    return Parts(axis, tuple(vector(part) if isinstance(part, str) else part for part in parts), None)


def replaced(tree, function):
    if isinstance(tree, list):
        return [replaced(one, function) for one in tree]
    return function(tree) if isinstance(tree, X) else tree


def applied(operation, arguments, options, reads=()):
    """Apply the rule of a call of which some outputs are read; return a degree for each output, and what is found."""
    graph, found = fx.Graph(), Findings()

    def node_of(tensor):
        node = graph.placeholder("x")
        node.meta["val"] = tensor
        return node

    def taken(x):
        node = node_of(x.tensor)
        found.memory.write(x.tensor, x.written(node), lambda degrees: None, placed=isinstance(x, S))
        return node

    torch.default_generator.manual_seed(0)
    out = operation(
        *replaced(arguments, lambda x: x.tensor), **{k: replaced(v, lambda x: x.tensor) for k, v in options.items()}
    )
    nodes = tuple(replaced(arguments, taken)), {k: replaced(v, taken) for k, v in options.items()}
    node = graph.call_function(operation, *nodes)
    node.meta["val"] = out
    for index in reads:
        graph.call_function(operator.neg, (graph.call_function(operator.getitem, (node, index)),))
    call = Call(found, node)
    result, outs = apply_rule(call), tensors_of(node)
    degrees = list(result) if isinstance(result, list) else [result] * max(len(outs), 1)
    assert len(degrees) == max(len(outs), 1)
    for degree, out in zip(degrees, outs, strict=False):
        if isinstance(degree, Shifted) and not found.memory.knows(out):
            assert degree.place == place_of(out)
    for one in (*degrees, *found.conditions, *found.eps):
        assert isinstance(getattr(one, "node", node), fx.Node)
    if not call.mutates:  # a view is of the degree of what is seen
        degrees = [
            found.degree(node_of(out)) if found.memory.knows(out) else degree
            for out, degree in itertools.zip_longest(outs, degrees[: len(outs)])
        ] or degrees
    return degrees, found


def outputs(operation, arguments, options, factors):
    torch.default_generator.manual_seed(0)
    out = operation(
        *replaced(arguments, lambda x: x.scaled(factors)),
        **{k: replaced(v, lambda x: x.scaled(factors)) for k, v in options.items()},
    )
    return [torch.as_tensor(one) for one in (out if isinstance(out, list | tuple) else [out])]


POWERS = [dict(zip("abcd", powers, strict=True)) for powers in itertools.product(range(-2, 3), repeat=4)]
random.Random(0).shuffle(POWERS)


def choices(conditions):
    """Return ways in which a, b, c and d may grow while the conditions hold; at first, not at all."""
    fits = (powers for powers in POWERS if not any(sum(k * powers[name] for name, k in v.items()) for v in conditions))
    return [
        {name: 2.0**power for name, power in powers.items()}
        for powers in (dict.fromkeys("abcd", 0), *itertools.islice(fits, 7))
    ]


def misfit(degree, values, factors):
    """Return by how much an output, given for each way to grow, does not grow as its degree says, as part of its size."""
    if isinstance(degree, Parts):
        if degree.axis not in range(values[0].ndim):
            return 0.0  # nothing tells them apart
        parts = zip(*(value.chunk(len(degree.parts), degree.axis) for value in values), strict=True)
        return max(misfit(part, value, factors) for part, value in zip(degree.parts, parts, strict=True))
    if values[0].is_complex():
        values = [torch.view_as_real(value.resolve_conj()) for value in values]
    if not values[0].is_floating_point() or not values[0].numel():
        return 0.0 if all(torch.equal(value, values[0]) for value in values) else INF
    whole, shifts, axes = (degree.degree, degree.shifts, degree.axes) if isinstance(degree, Shifted) else (degree, (), ())
    rows = torch.stack([value.to(torch.float64) / growth(whole, of) for value, of in zip(values, factors, strict=True)])
    unbounded = ~rows[0].isfinite()
    if not torch.allclose(*(x.where(unbounded, 0.0) for x in (rows, rows[:1].expand_as(rows))), equal_nan=True):
        return INF
    rows = rows.where(~unbounded, 0.0)
    if not rows.isfinite().all():
        return INF
    shifts = [shift for shift in shifts if any(growth(shift, of) != growth(whole, of) for of in factors)]
    each = torch.tensor([[1.0, *(growth(s, of) / growth(whole, of) for s in shifts)] for of in factors], dtype=torch.float64)
    flat = rows.reshape(len(rows), -1)
    sizes = rows.abs().amax().clamp(min=1e-300)
    terms = torch.linalg.lstsq(each, flat).solution
    error = float((each @ terms - flat).abs().amax() / sizes)
    for term in terms[1:]:  # numbers that depend on the index along the axes alone
        term = term.view_as(values[0])
        others = [axis for axis in range(term.ndim) if axis not in axes]
        if others:
            spread = term.where(~unbounded, -INF).amax(others) - term.where(~unbounded, INF).amin(others)
            error = max(error, float(spread.amax() / sizes))
    return error


KINDS = {
    "asks": "unequal degrees", "nonlinear": "nonlinear", "unknown": "unknown operation", "statistics": "stored statistics",
    "state": "stored state",
}  # fmt: skip


def case(operation, *arguments, gives, reads=None, eps=(), wary=False, **options):
    """Say what an operation gives (the degrees of its outputs, or one for all) and which conditions it asks for, by kind.

    ``reads`` are the outputs that something reads, ``eps`` the constants taken for an eps; ``wary`` is a rule that asks for
    more than numbers do.
    """
    degrees = [vector(g) if isinstance(g, str) else g for g in (gives if isinstance(gives, list) else [gives])]
    conditions = {kind: [vector(v) for v in options.pop(word, "").split()] for word, kind in KINDS.items()}
    label = "-".join([str(operation), str(len(arguments)), *(kind for kind in conditions if conditions[kind])])
    return pytest.param(operation, list(arguments), options, degrees, conditions, reads, eps, wary, id=label)


def turned(*, axes):
    """A matrix of shape 3, 4 that lies in memory column by column."""
    return S(value=either_sign(4, 3).T, axes=axes)


def nowhere(value):
    """A matrix with an entry that is no finite number."""
    tensor = positive(3, 4)
    tensor[1, 2] = value
    return X("a", value=tensor)


def region(degree):
    return X(degree, value=torch.tensor([[0.0, 0.0, 0.0, 3.0, 3.0]], dtype=torch.float64))


def deformed(of, offset="", bias="a+b+d"):
    """The tensors of a deformable convolution; what is a bias without a mask is 0."""
    return of(1, 2, 5, 5), b(3, 2, 3, 3), X(offset, 1, 18, 3, 3), X("d", 1, 9, 3, 3), X(bias, 3)


def on_each(x, *some):
    """What works on each entry alone, but is not linear."""
    elementwise = [
        (ATEN.relu.default, []), (ATEN.abs.default, []), (ATEN.leaky_relu.default, [0.1]),
        (ATEN.rrelu.default, [0.1, 0.3, True]),        (ATEN.dropout.default, [0.5, True]),
        (ATEN.feature_dropout.default, [0.5, True]),
    ]  # fmt: skip
    return [(operation, [x, *rest]) for operation, rest in elementwise if not some or operation in some]


def handed_on(x):
    """What hands on what is added to all of a channel."""
    names = "neg negative positive contiguous clone _to_copy detach alias"
    return [*((getattr(ATEN, name).default, [x]) for name in names.split()), (ATEN.to.dtype, [x, torch.float64])]


POOLS = [["max_pool", 2], ["avg_pool", 2], ["adaptive_avg_pool", 2]]


def pooled(n, name, size, of=S, **expected):
    """A pooling over n axes."""
    return case(getattr(ATEN, f"{name}{n}d").default, of(2, 3, *[4] * n), [size] * n, **expected)


ON_A_MATRIX = [
    ["numpy_T"], ["mT"], ["mH"], ["matrix_H"], ["adjoint"], ["squeeze"], ["unsqueeze", 0], ["expand", [2, 3, 3]],
    ["alias_copy"], ["broadcast_to", [2, 3, 3]], ["expand_as", b(2, 3, 3)], ["reshape_as", b(9)], ["diagonal"],
    ["as_strided", [2, 2], [3, 1]], ["_unsafe_view", [9]], ["_reshape_alias", [9], [1]], ["view_copy", [9]],
    ["permute", [1, 0]], ["permute_copy", [1, 0]], ["expand_copy", [2, 3, 3]], ["unsqueeze_copy", 0], ["squeeze_copy"],
    ["lift"], ["lift_fresh"], ["lift_fresh_copy"], ["real"], ["resolve_conj"], ["resolve_neg"], ["conj"], ["type_as", b(2)],
    ["swapaxes", 0, 1], ["swapdims", 0, 1], ["chunk", 3], ["unsafe_chunk", 3], ["split_with_sizes", [1, 2]],
    ["unsafe_split_with_sizes", [1, 2]], ["narrow", 0, 1, 2], ["repeat", [2, 1]], ["tile", [2]], ["roll", [1]], ["flip", [0]],
    ["fliplr"], ["flipud"], ["rot90"], ["tril"], ["triu"], ["diag"], ["diag_embed"], ["trace"], ["mean"], ["nansum"],
    ["nanmean"], ["amax"], ["amin"], ["aminmax"], ["std"], ["take", INDEX], ["gather", 0, given([[0, 1, 2]])],
    ["take_along_dim", given([[0, 1, 2]]), 0], ["unfold", 0, 2, 1], ["linalg_matrix_norm", 2], ["linalg_svdvals"],
    ["linalg_eigvalsh"], ["median"], ["nanmedian"], ["min"], ["masked_select", given([True, False, True])], ["fft_fft"],
    ["fft_ifft"], ["fft_rfft"], ["fft_irfft"], ["fft_fft2"], ["fft_ifft2"], ["fft_rfft2"], ["fft_irfft2"], ["fft_fftn"],
    ["fft_ifftn"], ["fft_rfftn"], ["fft_irfftn"],
]  # fmt: skip
ON_A_TENSOR = [
    [ATEN.unflatten.int, (3, 4), 1, [2, 2]], [ATEN.transpose.int, (3, 4), 0, 1], [ATEN.transpose_copy.int, (3, 4), 0, 1],
    [ATEN.movedim.int, (3, 4), 0, 1], [ATEN.moveaxis.int, (3, 4), 0, 1], [ATEN.slice.Tensor, (3, 4), 0, 1, 3],
    [ATEN.slice_copy.Tensor, (3, 4), 0, 1, 3], [ATEN.select_copy.int, (3, 4), 0, 1], [ATEN.split.Tensor, (4, 4), 2],
    [ATEN.unsafe_split.Tensor, (4, 4), 2], [ATEN.tensor_split.sections, (4, 4), 2], [ATEN.hsplit.int, (4, 4), 2],
    [ATEN.vsplit.int, (4, 4), 2], [ATEN.view_as_complex.default, (4, 2)], [ATEN.repeat_interleave.self_int, (3, 4), 2],
    [ATEN.index.Tensor, (3, 4), [INDEX]], [ATEN.quantile.scalar, (3, 4), 0.3], [ATEN.nanquantile.scalar, (3, 4), 0.3],
    [ATEN._unsafe_index.Tensor, (3, 4), [INDEX]], [ATEN.frobenius_norm.dim, (3, 4), [0, 1]],
    [ATEN.im2col.default, (2, 3, 4, 4), [2, 2], [1, 1], [0, 0], [1, 1]], [ATEN.pixel_unshuffle.default, (1, 4, 4, 4), 2],
    [ATEN.col2im.default, (2, 8, 9), [4, 4], [2, 2], [1, 1], [0, 0], [1, 1]], [ATEN.pixel_shuffle.default, (1, 4, 4, 4), 2],
    [ATEN.channel_shuffle.default, (1, 4, 4, 4), 2], [ATEN.native_channel_shuffle.default, (1, 4, 4, 4), 2],
    [ATEN.upsample_nearest1d.default, (1, 2, 4), [8]], [ATEN.upsample_nearest2d.default, (1, 2, 4, 4), [8, 8]],
    [ATEN.upsample_nearest3d.default, (1, 2, 4, 4, 4), [8, 8, 8]], [ATEN.upsample_linear1d.default, (1, 2, 4), [8], False],
    [ATEN.upsample_bilinear2d.default, (1, 2, 4, 4), [8, 8], False],
    [ATEN.upsample_bicubic2d.default, (1, 2, 4, 4), [8, 8], False],
    [ATEN.upsample_trilinear3d.default, (1, 2, 4, 4, 4), [8, 8, 8], False],
    *([getattr(ATEN, f"_upsample_nearest_exact{n}d").default, (1, 2, *[4] * n), [8] * n] for n in (1, 2, 3)),
    [ATEN._upsample_bilinear2d_aa.default, (1, 2, 4, 4), [3, 3], False],
    [ATEN._upsample_bicubic2d_aa.default, (1, 2, 4, 4), [3, 3], False],
]  # fmt: skip
ON_COMPLEX = ["view_as_real", "imag", "real", "conj"]
WITH_INDICES = [
    [ATEN.min.dim, (3, 4), 1], [ATEN.median.dim, (3, 4), 1], [ATEN.nanmedian.dim, (3, 4), 1], [ATEN.mode.default, (3, 4)],
    [ATEN.kthvalue.default, (3, 4), 2], [ATEN.cummax.default, (3, 4), 1], [ATEN.cummin.default, (3, 4), 1],
    *([getattr(ATEN, f"max_pool{n}d_with_indices").default, (2, 3, *[4] * n), [2] * n] for n in (2, 3)),
    *([getattr(ATEN, f"adaptive_max_pool{n}d").default, (2, 3, *[4] * n), [2] * n] for n in (1, 2, 3)),
    [ATEN.max_pool1d_with_indices.default, (2, 3, 4), [2]],
]  # fmt: skip
PRODUCTS = [
    [ATEN.vdot.default, a(3), b(3)], [ATEN.inner.default, a(), b()], [ATEN.kron.default, a(), b()],
    [ATEN.ger.default, a(3), b(4)], [ATEN.tensordot.default, a(), b(4, 3), [1], [0]], [ATEN.cross.default, a(2, 3), b(2, 3), 1],
    [ATEN.linalg_cross.default, a(2, 3), b(2, 3)], [ATEN.linalg_matmul.default, a(), b(4, 3)],
    [ATEN.linalg_vecdot.default, a(), b()],
    [ATEN._convolution.default, a(2, 3, 5), b(4, 3, 3), None, [1], [0], [1], False, [0], 1, False, False, False, False],
]  # fmt: skip
PAIRS = [
    ATEN.subtract.Tensor, ATEN.minimum.default, ATEN.fmax.default, ATEN.fmin.default, ATEN.hypot.default, ATEN.rsub.Tensor,
]  # fmt: skip
PUT_TOGETHER = [
    *([getattr(ATEN, f"{kind}stack").default, [a(), b()]] for kind in ("h", "v", "d", "column_", "row_")),
    [ATEN.block_diag.default, [a(), b()]],
    [ATEN._unsafe_index_put.default, a(), [INDEX], b()], [ATEN._index_put_impl.default, a(), [INDEX], b()],
    [ATEN.index_add.default, a(), 0, INDEX, b()], [ATEN.scatter_add.default, a(), 0, given([[0, 1]]), b()],
    [ATEN.slice_scatter.default, a(), b(2, 4), 0, 1, 3], [ATEN.diagonal_scatter.default, a(), b(3)],
]  # fmt: skip
SAME = positive()
COMPARISONS = [
    ATEN.eq.Tensor, ATEN.ne.Tensor, ATEN.lt.Tensor, ATEN.le.Tensor, ATEN.ge.Tensor, ATEN.equal.default, ATEN.greater.Tensor,
    ATEN.greater_equal.Tensor, ATEN.less.Tensor, ATEN.less_equal.Tensor, ATEN.not_equal.Tensor, ATEN.arctan2.default,
]  # fmt: skip
MADE = [
    [ATEN.isinf.default, "", S()], [ATEN.isfinite.default, "", S()], [ATEN.randn_like.default, "", a()],
    [ATEN.randint_like.default, "", a(), 5], [ATEN.new_ones.default, "", a(), [3]], [ATEN.logical_not.default, "", a()],
    [ATEN.logical_or.default, "", a(), b()], [ATEN.logical_xor.default, "", a(), b()], [ATEN.any.default, "", a()],
    [ATEN.all.default, "", a()], [ATEN.count_nonzero.default, "", a()], [ATEN.zeros.default, None, [3]],
    [ATEN.new_zeros.default, None, a(), [3]], [ATEN.zero.default, None, a()], [ATEN.new_full.default, "", a(), [3], 2.0],
    [ATEN.full.default, "", [3], 2.0], [ATEN.scalar_tensor.default, "", 2.0], [ATEN.exponential_.default, "", a()],
    [ATEN.random_.default, "", a()], [ATEN.geometric_.default, "", a(), 0.5], [ATEN.cauchy_.default, "", a()],
    [ATEN.log_normal_.default, "", a()],
]  # fmt: skip
NO_STRIDE = (1, 1, 0, 0, 1, 1, 1, 1)
TRAINED, STORED = (True, 0.1, 0.0, False), (False, 0.1, 0.0, False)
SIGNS = [[ATEN.sign.default], [ATEN.sgn.default], [ATEN.signbit.default], [ATEN.argmax.default, 1], [ATEN.argmin.default, 1]]
UNITRIANGULAR, UPPER = ATEN.linalg_solve_triangular.default, {"upper": True, "unitriangular": True}
ATTENTION = ATEN.scaled_dot_product_attention.default


CASES = [
    # powers
    case(ATEN.sqrt.default, X("2a"), gives="a"),
    case(ATEN.sqrt.default, a(), gives="1/2a"),
    case(ATEN.sqrt.default, S(value=torch.full((3, 4), 9.0).double()), gives="1/2a", asks="a-c"),
    case(ATEN.rsqrt.default, a(), gives="-1/2a"),
    case(ATEN.reciprocal.default, a(), gives="-a"),
    case(ATEN.reciprocal.default, ZERO, gives=None),
    case(ATEN.square.default, X("a+b"), gives="2a+2b"),
    case(ATEN.var.correction, a(), [1], gives="2a"),
    case(ATEN.var_mean.correction, a(), [1], gives=["2a", "a"]),
    case(ATEN.std_mean.correction, a(), [1], gives=["a", "a"]),
    case(ATEN.pow.Tensor_Scalar, a(), 3, gives="3a"),
    case(ATEN.pow.Tensor_Scalar, a(), 0.5, gives="1/2a"),
    case(ATEN.pow.Tensor_Scalar, a(), 1 / 3, gives="1/3a"),
    case(ATEN.pow.Tensor_Scalar, a(), 1e-7, gives=[{"a": Fraction(1e-7)}]),  # small, but not nothing
    case(ATEN.pow.Tensor_Scalar, a(), math.pi, gives=[{"a": Fraction(math.pi)}]),
    case(ATEN.pow.Tensor_Scalar, a(), 0, gives=""),
    case(ATEN.pow.Tensor_Scalar, ZERO, 0, gives=""),
    case(ATEN.pow.Tensor_Scalar, ZERO, 2, gives=None),
    case(ATEN.pow.Tensor_Scalar, a(), INF, gives="", nonlinear="a"),
    case(ATEN.pow.Tensor_Scalar, a(), math.nan, gives="", nonlinear="a", wary=True),
    case(ATEN.pow.Tensor_Tensor, a(), b(), gives="", nonlinear="a b"),
    case(ATEN.pow.Scalar, 2.0, a(), gives="", nonlinear="a"),
    case(ATEN.prod.default, a(), gives="12a"),
    case(ATEN.prod.dim_int, a(), 1, gives="4a"),
    case(ATEN.prod.dim_int, a(0, 4), 1, gives=""),
    case(ATEN.prod.dim_int, a(3, 0), 1, gives=""),
    case(ATEN.linalg_vector_norm.default, a(), 0, gives=""),
    case(ATEN.linalg_vector_norm.default, a(), 2, gives="a"),
    case(ATEN.linalg_vector_norm.default, a(), 1, gives="a"),
    case(ATEN.linalg_norm.ord_str, a(), "nuc", gives="a"),
    case(ATEN.norm.Scalar, a(), 0, gives=""),
    case(ATEN.norm.Scalar, a(), 3, gives="a"),
    case(ATEN.norm.Scalar, S(), 0, gives="", asks="a-c", wary=True),
    # linear in one argument
    case(ATEN.sum.dim_IntList, a(), [1], gives="a"),
    case(ATEN.sum.dim_IntList, S(), [1], gives="a", asks="a-c"),
    case(ATEN.sum.dim_IntList, P(0, a(), b()), [0], gives="a", asks="a-b"),
    case(ATEN.cumsum.default, a(), 1, gives="a"),
    case(ATEN.index_select.default, a(), 0, INDEX, gives="a"),
    case(ATEN.max.default, a(), gives="a"),
    case(ATEN.max.dim, a(), 1, gives=["a", ""]),
    case(ATEN.topk.default, a(), 2, gives=["a", ""]),
    case(ATEN.sort.default, S(), gives=["a", ""], asks="a-c"),
    case(ATEN.max.other, a(), a(), gives="a"),
    case(ATEN.max.other, a(), b(), gives="a", asks="a-b"),
    case(ATEN.native_dropout.default, a(), 0.5, True, gives=["a", ""]),
    case(ATEN.view.dtype, a(), torch.int64, gives="a", nonlinear="a"),
    # what a rule does not look at must not scale, unless it is only looked at for its shape, or overwritten
    case(ATEN.index_select.default, a(), 0, given([0, 2, 1], "b"), gives="a", unknown="b", wary=True),
    case(ATEN.view_as.default, a(3, 4), b(4, 3), gives="a"),
    case(ATEN.zeros_like.default, b(), gives=None),
    case(ATEN.add.out, a(), a(), out=b(), gives="a"),
    # views, and copies in the order of the indices
    case(ATEN.t.default, S(3, 4, axes=(0,)), gives=shifted("a", "c", axes=(1,))),
    case(ATEN.select.int, S(2, 3, 4), 0, 1, gives=shifted("a", "c", axes=(0,))),
    case(ATEN.unbind.int, S(2, 4, axes=(1,)), gives=[shifted("a", "c", axes=(0,))] * 2),
    case(ATEN.view.default, S(2, 3, 4), [6, 4], gives=shifted("a", "c", axes=(0,))),
    case(ATEN.t_copy.default, P(1, a(), b()), gives="a", asks="a-b"),
    case(ATEN.reshape.default, S(2, 3, 4), [2, 12], gives=shifted("a", "c", axes=(1,))),
    case(ATEN.reshape.default, turned(axes=(0,)), [6, 2], gives=shifted("a", "c", axes=(0,))),
    case(ATEN.reshape.default, turned(axes=(1,)), [6, 2], gives=shifted("a", "c", axes=(0, 1))),
    case(ATEN.reshape.default, turned(axes=(1,)), [2, 6], gives="a", asks="a-c"),
    case(
        ATEN.flatten.using_ints,
        S(value=either_sign(4, 3, 2).transpose(0, 2), axes=(2,)),
        0,
        1,
        gives=shifted("a", "c"),
    ),
    case(ATEN.t_copy.default, S(), gives="a", asks="a-c"),
    case(ATEN.t_copy.default, S(3, 3), gives="a", asks="a-c"),
    case(ATEN.detach.default, S(), gives=shifted("a", "c")),
    # products and quotients
    case(ATEN.mul.Tensor, a(), b(), gives="a+b"),
    case(ATEN.mul.Tensor, a(), 3.0, gives="a"),
    case(ATEN.mul.Tensor, a(), 0.0, gives=None),
    case(ATEN.mul.Tensor, S(), 2.0, gives=shifted("a", "c")),
    case(ATEN.mul.Tensor, S(), 0.0, gives=None, asks="a-c", wary=True),
    case(ATEN.mul.Tensor, S(), b(), gives="a+b", asks="a-c"),
    case(ATEN.mul.Tensor, b(), S(), gives="a+b", asks="a-c"),
    case(ATEN.mm.default, a(3, 4), b(4, 5), gives="a+b"),
    case(ATEN.mm.default, b(2, 3), S(axes=(0,)), gives=shifted("a+b", "b+c", axes=(0,))),
    case(ATEN.bmm.default, a(2, 3, 4), b(2, 4, 5), gives="a+b"),
    case(ATEN.bmm.default, b(2, 5, 3), S(2, 3, 4, axes=(0, 1)), gives=shifted("a+b", "b+c", axes=(0, 1))),
    case(ATEN.matmul.default, b(2, 3), S(axes=(0,)), gives=shifted("a+b", "b+c", axes=(0,))),
    case(ATEN.matmul.default, b(3), S(2, 3, 4, axes=(0, 1)), gives=shifted("a+b", "b+c", axes=(0,))),
    case(ATEN.matmul.default, b(2, 3), S(), gives="a+b", asks="a-c"),
    case(ATEN.matmul.default, S(3, 4, axes=(0,)), b(4, 2), gives="a+b", asks="a-c"),
    case(ATEN.matmul.default, b(2, 3), S(3, axes=()), gives="a+b", asks="a-c"),
    case(ATEN.matmul.default, b(2, 3), S(3, axes=(0,)), gives="a+b", asks="a-c"),
    case(ATEN.mv.default, a(2, 3), b(3), gives="a+b"),
    case(ATEN.dot.default, a(3), b(3), gives="a+b"),
    case(ATEN.outer.default, a(3), b(3), gives="a+b"),
    case(ATEN.einsum.default, "ij,kj->ik", [a(3, 4), b(5, 4)], gives="a+b"),
    case(ATEN.einsum.default, "ij,jk->ik", [b(2, 3), S(axes=(0,))], gives=shifted("a+b", "b+c", axes=(0,))),
    case(ATEN.einsum.default, "ij,jk->ik", [b(2, 3), S()], gives=shifted("a+b", "b+c", axes=(0, 1))),
    case(ATEN.einsum.default, "jk, ij -> ki", [S(), b(2, 3)], gives=shifted("a+b", "b+c", axes=(0, 1))),
    case(ATEN.einsum.default, "jk,j->jk", [S(), b(3)], gives=shifted("a+b", "b+c", axes=(0, 1))),
    case(ATEN.einsum.default, "ijk,i->ijk", [S(2, 3, 4), b(2)], gives=shifted("a+b", "b+c", axes=(0, 1))),
    case(ATEN.einsum.default, "ij,jk->ik", [S(2, 3), S(3, 4)], gives="2a", asks="a-c a-c"),
    case(ATEN.einsum.default, "ij,jk", [b(2, 3), S(axes=(0,))], gives="a+b", asks="a-c"),
    case(ATEN.einsum.default, "...j,jk->...k", [b(2, 3), S(axes=(0,))], gives="a+b", asks="a-c"),
    case(ATEN.einsum.default, "ij,jk,k->ik", [b(2, 3), S(axes=(0,)), b(4)], gives="a+2b", asks="a-c"),
    case(ATEN.einsum.default, "ij->j", [S()], gives="a", asks="a-c"),
    case(ATEN.addmm.default, X("a+b", 3, 5), a(3, 4), b(4, 5), gives="a+b"),
    case(ATEN.addmm.default, X("b", 3, 5), a(3, 4), b(4, 5), gives="a+b", asks="a"),
    case(ATEN.addmm.default, X("b", 3, 5), a(3, 4), b(4, 5), beta=0, gives="a+b"),
    case(ATEN.addmm.default, X("b", 3, 5), a(3, 4), b(4, 5), beta=0.5, gives="a+b", asks="a"),
    case(ATEN.addmv.default, X("b", 3), a(3, 4), b(4), gives="a+b", asks="a"),
    case(ATEN.addr.default, X("b", 3, 4), a(3), b(4), gives="a+b", asks="a"),
    case(ATEN.baddbmm.default, X("b", 2, 3, 5), a(2, 3, 4), b(2, 4, 5), gives="a+b", asks="a"),
    case(ATEN.addcmul.default, X("a+b"), a(), b(), gives="a+b"),
    case(ATEN.addcmul.default, X("b"), a(), b(), gives="a+b", asks="a"),
    case(ATEN.embedding.default, a(5, 4), INDEX, gives="a"),
    case(ATEN._embedding_bag.default, a(5, 4), INDEX, given([0, 2]), gives=["a", "", "", ""]),
    case(ATEN._embedding_bag.default, a(5, 4), INDEX, given([0, 2]), False, 0, False, b(3), gives=["a+b", "", "", ""]),
    case(ATEN.div.Tensor, a(), b(), gives="a-b"),
    case(ATEN.div.Tensor, a(), 2.0, gives="a"),
    case(ATEN.div.Tensor, a(), ZERO, gives="a"),
    case(ATEN.div.Tensor, S(), 2.0, gives=shifted("a", "c")),
    case(ATEN.div.Tensor, S(), 0.0, gives="a", asks="a-c"),
    case(ATEN.div.Tensor, S(), b(), gives="a-b", asks="a-c"),
    case(ATEN.div.Tensor_mode, a(), b(), rounding_mode="floor", gives="", nonlinear="a b"),
    case(ATEN.div.Tensor_mode, S(), 2.0, rounding_mode="floor", gives="", asks="a-c", nonlinear="a"),
    case(ATEN.addcdiv.default, X("a-b"), a(), b(), gives="a-b"),
    case(ATEN.addcdiv.default, a(), a(), b(), gives="a-b", asks="-b"),
    case(ATEN.addcdiv.default, a(), a(), ZERO, gives="a"),
    case(ATEN.linalg_solve.default, a(4, 4), b(4, 4), gives="b-a"),
    case(ATEN.linalg_solve_triangular.default, a(4, 4), b(4, 4), upper=True, gives="b-a"),
    case(ATEN.linalg_solve_triangular.default, a(4, 4), b(4, 4), upper=True, unitriangular=True, gives="b-a", nonlinear="a"),
    case(ATEN.inverse.default, a(4, 4), gives="-a"),
    # layers, with a bias for each channel
    case(ATEN.linear.default, a(3, 4), b(5, 4), gives="a+b"),
    case(ATEN.linear.default, a(), b(5, 4), X("c", 5), gives=shifted("a+b", "c")),
    case(ATEN.linear.default, a(), b(5, 4), X("a+b", 5), gives="a+b"),
    case(ATEN.linear.default, a(), b(5, 4), zeros(5), gives="a+b"),
    case(ATEN.linear.default, a(2, 3, 4), b(5, 4), X("c", 5), gives=shifted("a+b", "c", axes=(2,))),
    case(ATEN.linear.default, a(), b(5, 4), X("c", 3, 5), gives="a+b", asks="a+b-c"),  # another one for each sample
    case(ATEN.linear.default, a(4), b(4), X("c", value=torch.tensor(1.0).double()), gives="a+b", asks="a+b-c"),
    case(ATEN.linear.default, X("a", value=positive(4, 3, 2).permute(2, 1, 0)), b(4), X("c", 3), gives=shifted("a+b", "c")),
    case(ATEN.linear.default, S(), constant(5, 4), gives=shifted("a", "c")),
    case(ATEN.linear.default, S(), b(5, 4), gives=shifted("a+b", "b+c")),
    case(ATEN.linear.default, S(), b(5, 4), X("d", 5), gives=shifted("a+b", "b+c", "d")),
    case(ATEN.linear.default, S(axes=(0,)), b(5, 4), gives="a+b", asks="a-c"),
    case(ATEN.linear.default, S(), b(4), gives="a+b", asks="a-c"),
    case(ATEN.bilinear.default, a(3, 4), b(3, 5), constant(2, 4, 5), X("c", 2), gives=shifted("a+b", "c")),
    case(ATEN.bilinear.default, a(3, 4), b(3, 5), X("c", 2, 4, 5), gives="a+b+c"),
    case(ATEN.conv2d.default, a(2, 3, 5, 5), b(4, 3, 3, 3), gives="a+b"),
    case(ATEN.conv2d.default, a(2, 3, 5, 5), b(4, 3, 3, 3), X("c", 4), gives=shifted("a+b", "c")),
    case(ATEN.conv2d.default, a(3, 5, 5), b(4, 3, 3, 3), X("c", 4), gives=shifted("a+b", "c", axes=(0,))),
    case(ATEN.conv2d.default, a(2, 3, 5, 5), b(4, 3, 3, 3), X("c", 4), [1, 1], [1, 1], gives=shifted("a+b", "c")),
    case(ATEN.conv1d.default, S(2, 3, 5), b(4, 3, 3), gives=shifted("a+b", "b+c")),
    case(ATEN.conv2d.default, S(2, 3, 5, 5), b(4, 3, 3, 3), gives=shifted("a+b", "b+c")),
    case(ATEN.conv3d.default, S(2, 3, 5, 5, 5), b(4, 3, 3, 3, 3), gives=shifted("a+b", "b+c")),
    case(ATEN.conv1d.default, S(3, 5, axes=(0,)), b(4, 3, 3), gives=shifted("a+b", "b+c", axes=(0,))),
    case(ATEN.conv1d.padding, S(2, 3, 5), b(4, 3, 3), None, [1], "valid", gives=shifted("a+b", "b+c")),
    case(ATEN.conv1d.padding, S(2, 3, 5), b(4, 3, 3), None, [1], "same", gives="a+b", asks="a-c"),
    case(ATEN.conv1d.default, S(2, 3, 5), b(4, 3, 3), None, [1], [1], gives="a+b", asks="a-c"),
    case(ATEN.conv2d.default, S(2, 3, 5, 5), b(4, 3, 3, 3), None, [1, 1], [0, 1], gives="a+b", asks="a-c"),
    case(ATEN.conv1d.default, S(2, 3, 5, axes=(2,)), b(4, 3, 3), gives="a+b", asks="a-c"),
    case(ATEN.conv1d.default, S(2, 3, 5, axes=(0,)), b(4, 3, 3), gives="a+b", asks="a-c"),
    case(ATEN.conv_transpose1d.default, a(2, 3, 5), b(3, 4, 3), X("c", 4), gives=shifted("a+b", "c")),
    case(ATEN.conv_transpose1d.default, S(2, 3, 5), b(3, 4, 3), gives="a+b", asks="a-c"),
    case(
        ATEN.convolution.default,
        a(2, 3, 5),
        b(4, 3, 3),
        X("c", 4),
        [1],
        [0],
        [1],
        False,
        [0],
        1,
        gives=shifted("a+b", "c"),
    ),
    case(VISION.deform_conv2d.default, *deformed(a), *NO_STRIDE, True, gives="a+b+d"),
    case(VISION.deform_conv2d.default, *deformed(a, bias="a+b"), *NO_STRIDE, False, gives="a+b"),
    case(VISION.deform_conv2d.default, *deformed(a, bias="c"), *NO_STRIDE, True, gives="a+b+d", asks="a+b+d-c"),
    case(VISION.deform_conv2d.default, *deformed(a, offset="c"), *NO_STRIDE, True, gives="a+b+d", nonlinear="c"),
    # sums
    case(ATEN.add.Tensor, a(), a(), gives="a"),
    case(ATEN.add.Tensor, a(), b(), gives="a", asks="a-b"),
    case(ATEN.add.Tensor, a(), ZERO, gives="a"),
    case(ATEN.add.Tensor, a(), 0.0, gives="a"),
    case(ATEN.add.Tensor, a(), 1.0, gives="a", asks="a"),
    case(ATEN.add.Tensor, constant(), 1e-5, gives=""),
    case(ATEN.add.Tensor, a(), 1e-5, gives="a", eps=[1e-5]),
    case(ATEN.add.Tensor, a(), 1e-3, gives="a", eps=[1e-3]),
    case(ATEN.add.Tensor, a(), 1.1e-3, gives="a", asks="a"),
    case(ATEN.add.Tensor, a(), 1e-5, alpha=1e3, gives="a", asks="a"),
    case(ATEN.add.Tensor, S(), 1e-5, gives="a", asks="a-c", eps=[1e-5]),
    case(ATEN.sub.Tensor, a(), -1e-5, gives="a", eps=[1e-5]),
    case(ATEN.rsub.Scalar, a(), 1e-5, gives="a", eps=[1e-5]),
    case(ATEN.rsub.Scalar, a(), 1.0, gives="a", asks="a"),
    case(ATEN.rsub.Scalar, a(), 1.0, 1e-5, gives="a", asks="a"),  # 1 - 1e-5 x
    case(ATEN.sub.Tensor, a(), b(), gives="a", asks="a-b"),
    case(ATEN.maximum.default, a(), b(), gives="a", asks="a-b"),
    case(ATEN.maximum.default, S(), S(), gives="a", asks="a-c a-c"),
    case(ATEN.add.Tensor, S(), a(), gives=shifted("a", "c")),
    case(ATEN.add.Tensor, a(), S(), gives=shifted("a", "c")),
    case(ATEN.add.Tensor, S(), b(), gives=shifted("a", "c"), asks="a-b"),
    case(ATEN.add.Tensor, S(), X("c"), gives=shifted("a", "c"), asks="a-c"),
    case(ATEN.add.Tensor, S(), ZERO, gives=shifted("a", "c")),
    case(ATEN.add.Tensor, S(), 1.0, gives="a", asks="a-c a"),
    case(ATEN.add.Tensor, S(), P(1, a(3, 2), b(3, 2)), gives="a", asks="a-c a-b"),
    case(ATEN.add.Tensor, S(4, axes=(0,)), a(), gives="a", asks="a-c"),
    case(ATEN.add.Tensor, a(4), S(), gives=shifted("a", "c")),
    case(ATEN.sub.Tensor, S(), S(shift="d"), gives=shifted("a", "c", "d")),
    case(ATEN.add.Tensor, S(2, 3, 4, axes=(1,)), S(2, 3, 4, axes=(2,)), gives=shifted("a", "c", axes=(1, 2))),
    case(ATEN.stack.default, [a(), b()], gives="a", asks="a-b"),
    # side by side
    case(ATEN.cat.default, [a(), a()], gives="a"),
    case(ATEN.cat.default, [a(), ZERO], gives="a"),
    case(ATEN.cat.default, [ZERO, ZERO], gives=None),
    case(ATEN.cat.default, [a(), X("b", value=torch.zeros(0, dtype=torch.float64))], gives="a"),
    case(ATEN.cat.default, [a(3), b(3)], gives=side_by_side(0, "a", "b")),
    case(ATEN.cat.default, [a(), b(), ZERO], gives=side_by_side(0, "a", "b", None)),
    case(ATEN.cat.default, [a(), b()], 1, gives=side_by_side(1, "a", "b")),
    case(ATEN.cat.default, [a(), b()], -1, gives=side_by_side(1, "a", "b")),
    case(ATEN.cat.default, [EMPTY, a(), b()], 1, gives=side_by_side(1, "a", "b")),
    case(ATEN.cat.default, [P(1, a(), b()), P(1, b(), a())], 1, gives=side_by_side(1, "a", "b", "b", "a")),
    case(ATEN.cat.default, [P(0, a(), b()), a(6, 4)], 1, gives="a", asks="a-b"),
    case(ATEN.cat.default, [S(), b()], 1, gives=side_by_side(1, shifted("a", "c"), "b")),
    case(ATEN.cat.default, [S(axes=()), b()], 1, gives=side_by_side(1, shifted("a", "c"), "b")),
    case(ATEN.cat.default, [S(), S()], 1, gives=shifted("a", "c")),
    case(ATEN.cat.default, [S(axes=()), S(axes=())], 1, gives=shifted("a", "c")),
    case(ATEN.cat.default, [S(axes=(0,)), b()], 1, gives=side_by_side(1, "a", "b"), asks="a-c"),
    # each channel alone: parts stay apart, and some hand on what is added to a channel
    *(case(operation, *arguments, gives=side_by_side(0, "a", "b")) for operation, arguments in on_each(P(0, a(), b()))),
    *(case(operation, *arguments, gives="a", asks="a-c") for operation, arguments in on_each(S())),
    *(
        case(operation, *arguments, gives=side_by_side(0, "a", None), asks="a-c")
        for operation, arguments in on_each(P(0, S(), ZERO), ATEN.relu.default)
    ),
    *(case(operation, *arguments, gives=shifted("a", "c", axes=(0,))) for operation, arguments in handed_on(S(axes=(0,)))),
    *(
        case(operation, *arguments, gives=side_by_side(1, shifted("a", "c"), "b"))
        for operation, arguments in handed_on(P(1, S(), b()))
    ),
    *(pooled(n, name, *rest, gives=shifted("a", "c")) for n in (1, 2, 3) for name, *rest in POOLS),
    *(
        pooled(n, name, *rest, of=lambda *shape: P(1, S(*shape), b(*shape)), gives=side_by_side(1, shifted("a", "c"), "b"))
        for n in (1, 2, 3)
        for name, *rest in POOLS
    ),
    *(
        pooled(n, name, *rest, of=lambda *shape: S(*shape, axes=(0, 2)), gives="a", asks="a-c")
        for n in (1, 2, 3)
        for name, *rest in POOLS
    ),
    *(
        pooled(n, name, *rest, of=lambda *shape: P(2, a(*shape), b(*shape)), gives="a", asks="a-b")
        for n in (1, 2, 3)
        for name, *rest in POOLS
        if "adaptive" not in name
    ),
    case(ATEN.max_pool1d.default, S(2, 8, axes=(0,)), [2], gives=shifted("a", "c", axes=(0,))),
    case(ATEN.max_pool1d.default, S(2, 3, 8), [3], [1], [1], gives=shifted("a", "c")),
    case(ATEN.avg_pool1d.default, S(2, 3, 8), [2], [2], [1], gives="a", asks="a-c"),
    case(ATEN.avg_pool1d.default, S(2, 3, 8), [2], [2], [1], False, False, gives=shifted("a", "c")),
    case(ATEN.avg_pool2d.default, S(2, 3, 8, 8), [2, 2], [2, 2], [0, 0], False, True, 2, gives="a", asks="a-c"),
    case(
        ATEN.avg_pool2d.default,
        P(1, a(2, 3, 8, 8), S(2, 3, 8, 8)),
        [2, 2],
        [2, 2],
        [1, 1],
        gives=side_by_side(1, "a", "a"),
        asks="a-c",
    ),
    # one of several, and bounds
    case(ATEN.where.self, MASK, a(), a(), gives="a"),
    case(ATEN.where.self, MASK, a(), b(), gives="a", asks="a-b"),
    case(ATEN.where.self, X("b", value=torch.ones(3, 4, dtype=torch.bool)), a(), a(), gives="a", nonlinear="b", wary=True),
    case(ATEN.where.default, MASK, gives=["", ""]),
    case(ATEN.masked_fill.Scalar, a(), MASK, 0.0, gives="a"),
    case(ATEN.masked_fill.Scalar, a(), MASK, -INF, gives="a"),
    case(ATEN.masked_fill.Scalar, a(), MASK, 1.0, gives="a", asks="a"),
    case(ATEN.masked_fill.Tensor, a(), MASK, X("b", value=torch.tensor(1.0).double()), gives="a", asks="a-b"),
    case(ATEN.masked_fill.Scalar, S(), MASK, -INF, gives=shifted("a", "c")),
    case(ATEN.masked_fill.Scalar, S(), MASK, 0.0, gives="a", asks="a-c"),
    case(ATEN.masked_fill.Scalar, S(4, axes=(0,)), MASK, -INF, gives="a", asks="a-c"),
    case(ATEN.index_fill.int_Scalar, S(), 0, INDEX, -INF, gives="a", asks="a-c", wary=True),
    case(ATEN.masked_scatter.default, a(), MASK, b(), gives="a", asks="a-b"),
    case(ATEN.index_put.default, a(), [INDEX], b(3, 4), gives="a", asks="a-b"),
    case(ATEN.index_copy.default, a(), 0, INDEX, a(), gives="a"),
    case(ATEN.index_copy.default, a(), 0, INDEX, b(), gives="a", asks="a-b"),
    case(ATEN.scatter.src, a(), 0, given([[0, 1]]), b(), gives="a", asks="a-b"),
    case(ATEN.scatter.value, a(), 0, given([[0, 1]]), 1.0, gives="a", asks="a"),
    case(ATEN.scatter.value_reduce, a(), 0, given([[0, 1]]), 2.0, reduce="multiply", gives="", nonlinear="a"),
    case(ATEN.scatter.value_reduce, a(), 0, given([[0, 1]]), 2.0, reduce="add", gives="a", asks="a"),
    case(ATEN.select_scatter.default, a(), b(4), 0, 1, gives="a", asks="a-b"),
    case(ATEN.scatter_reduce.two, a(), 0, given([[0] * 4] * 3), a(), "prod", gives="", nonlinear="a"),
    case(ATEN.scatter_reduce.two, a(), 0, given([[0] * 4] * 3), a(), "sum", gives="a"),
    case(ATEN.clamp.default, a(), 0.0, gives="a"),
    case(ATEN.clamp.default, a(), 1.0, gives="a", asks="a"),
    case(ATEN.clamp.default, a(), 0.0, 1.0, gives="a", asks="a"),
    case(ATEN.clamp.default, a(), 1e-6, 1.0, gives="a", asks="a"),
    case(ATEN.clamp.default, a(), None, INF, gives="a"),
    case(ATEN.clamp.default, a(), None, 1.0, gives="a", asks="a"),
    case(ATEN.clamp.default, a(), 1e-6, gives="a", eps=[1e-6]),
    case(ATEN.clamp.Tensor, a(), b(), gives="a", asks="a-b"),
    case(ATEN.clamp.Tensor, a(), None, b(), gives="a", asks="a-b"),
    case(ATEN.clamp.Tensor, a(), a(), X("2a"), gives="a", asks="-a"),
    case(ATEN.clamp_min.default, a(), 0.0, gives="a"),
    case(ATEN.clamp_min.default, a(), 1e-6, gives="a", eps=[1e-6]),
    case(ATEN.clamp_max.default, a(), 1.0, gives="a", asks="a"),
    case(ATEN.threshold.default, a(), 0.0, 0.0, gives="a"),
    case(ATEN.threshold.default, a(), 0.5, 0.0, gives="a", asks="a"),
    case(ATEN.threshold.default, X("a", value=either_sign()), 0.0, 1.0, gives="a", asks="a"),
    case(ATEN.constant_pad_nd.default, a(), [1, 1], 0.0, gives="a"),
    case(ATEN.constant_pad_nd.default, a(), [1, 1], 1.0, gives="a", asks="a"),
    case(ATEN.constant_pad_nd.default, S(2, 3, 8), [1, 1], 0.0, gives="a", asks="a-c"),
    case(ATEN.pad.default, a(2, 3, 4), [1, 1], gives="a"),
    case(ATEN.pad.default, S(2, 3, 4), [1, 1], "constant", gives="a", asks="a-c"),
    case(ATEN.pad.default, a(2, 3, 4), [1, 1], "constant", 1.0, gives="a", asks="a"),
    case(ATEN.pad.default, a(2, 3, 4), [1, 1], "reflect", gives="a"),
    case(ATEN.pad.default, S(2, 3, 8), [1, 1], "replicate", gives=shifted("a", "c")),
    case(ATEN.pad.default, P(1, a(2, 3, 4), b(2, 3, 4)), [1, 1], "circular", gives=side_by_side(1, "a", "b")),
    case(ATEN.pad.default, P(1, a(2, 3, 4), b(2, 3, 4)), [1, 1, 1, 1], "reflect", gives="a", asks="a-b"),
    case(ATEN._pad_circular.default, S(2, 3, 8), [1, 1], gives=shifted("a", "c")),
    case(ATEN.reflection_pad1d.default, a(2, 3, 4), [1, 1], gives="a"),
    case(ATEN.reflection_pad1d.default, S(2, 3, 8, axes=(2,)), [1, 1], gives=shifted("a", "c", axes=(2,))),
    case(ATEN.reflection_pad1d.default, P(1, a(2, 3, 4), b(2, 3, 4)), [1, 1], gives=side_by_side(1, "a", "b")),
    case(ATEN.reflection_pad1d.default, P(2, a(2, 3, 4), b(2, 3, 4)), [1, 1], gives="a", asks="a-b"),
    case(ATEN.lerp.Tensor, a(), a(), constant(), gives="a"),
    case(ATEN.lerp.Tensor, a(), X("2b"), b(), gives="a", nonlinear="b", asks="a-2b"),
    case(ATEN.nan_to_num.default, a(), gives="a"),
    case(ATEN.nan_to_num.default, a(), 0.0, INF, gives="a"),
    case(ATEN.nan_to_num.default, nowhere(math.nan), 1.0, gives="a", asks="a"),
    case(ATEN.nan_to_num.default, nowhere(INF), 0.0, 5.0, gives="a", asks="a"),
    case(ATEN.nan_to_num.default, nowhere(-INF), 0.0, 0.0, 5.0, gives="a", asks="a"),
    case(ATEN.prelu.default, a(), constant(4), gives="a"),
    case(ATEN.prelu.default, X("a", value=either_sign()), b(4), gives="a", nonlinear="b"),
    case(ATEN.grid_sampler.default, a(1, 2, 4, 4), constant(1, 3, 3, 2), 0, 0, False, gives="a"),
    case(ATEN.grid_sampler.default, a(1, 2, 4, 4), b(1, 3, 3, 2), 0, 0, False, gives="a", nonlinear="b"),
    case(VISION.roi_align.default, a(1, 4, 5, 5), region(""), 1.0, 2, 2, 2, False, gives="a"),
    case(VISION.roi_align.default, a(1, 4, 5, 5), region("b"), 1.0, 2, 2, 2, False, gives="a", nonlinear="b"),
    case(VISION.roi_pool.default, a(1, 4, 5, 5), region(""), 1.0, 2, 2, gives=["a", ""]),
    case(VISION.ps_roi_align.default, a(1, 4, 5, 5), region(""), 1.0, 2, 2, 2, gives=["a", ""]),
    # what overwrites, or does not depend on what comes in
    case(ATEN.copy.default, a(), b(), gives="b"),
    case(ATEN.fill.Tensor, a(), X("b", value=torch.ones((), dtype=torch.float64)), gives="b"),
    case(ATEN.fill.Scalar, a(), 2.0, gives=""),
    case(ATEN.zeros_like.default, a(), gives=None),
    case(ATEN.full_like.default, a(), 2.0, gives=""),
    case(ATEN.full_like.default, a(), 0.0, gives=None),
    case(ATEN.ones_like.default, S(), gives=""),
    case(ATEN.clone.default, ZERO, gives=None),
    case(ATEN.rand_like.default, a(), gives=""),
    case(ATEN.uniform_.default, a(), gives=""),
    case(ATEN.normal_.default, a(), 0.0, 2.0, gives=""),
    case(ATEN.bernoulli.default, given(0.1 * positive(), "b"), gives="", nonlinear="b"),
    case(ATEN.bernoulli_.Tensor, a(), given(0.1 * positive(), "b"), gives="", nonlinear="a b"),
    # signs and comparisons, of what grows alike
    *(case(operation, a(), *rest, gives="") for operation, *rest in SIGNS),
    *(case(operation, S(), *rest, gives="", asks="a-c") for operation, *rest in SIGNS),
    case(ATEN.argsort.default, S(), gives="", asks="a-c"),
    case(ATEN.nonzero.default, S(), gives="", asks="a-c", wary=True),
    case(ATEN.logical_and.default, a(), S(), gives="", asks="a-c", wary=True),
    case(ATEN.isnan.default, S(), gives=""),
    case(ATEN.gt.Tensor, a(), a(), gives=""),
    case(ATEN.gt.Tensor, a(), b(), gives="", asks="a-b"),
    case(ATEN.gt.Scalar, a(), 0, gives=""),
    case(ATEN.gt.Scalar, a(), 1, gives="", asks="a"),
    case(ATEN.gt.Scalar, S(), 0, gives="", asks="a-c"),
    case(ATEN.atan2.default, a(), a(), gives=""),
    # norms
    case(ATEN.layer_norm.default, a(), [4], None, None, 0.0, gives=""),
    case(ATEN.layer_norm.default, a(), [4], b(4), None, 0.0, gives="b"),
    case(ATEN.layer_norm.default, a(), [4], None, b(4), 0.0, gives=shifted("", "b")),
    case(ATEN.layer_norm.default, a(2, 3, 4), [4], b(4), X("c", 4), 0.0, gives=shifted("b", "c", axes=(2,))),
    case(ATEN.layer_norm.default, S(), [4], None, None, 0.0, gives="", asks="a-c"),
    case(ATEN.layer_norm.default, a(2, 3, 4), [3, 4], b(3, 4), b(3, 4), 0.0, gives="b"),
    case(ATEN.layer_norm.default, a(2, 3, 4), [3, 4], b(3, 4), None, 0.0, gives="b"),
    case(ATEN.layer_norm.default, a(2, 3, 4), [3, 4], b(3, 4), X("2b", 3, 4), 0.0, gives="b", asks="-b"),
    case(ATEN.native_layer_norm.default, a(), [4], b(4), X("c", 4), 0.0, gives=[shifted("b", "c"), "", ""], reads=[0]),
    case(ATEN.native_layer_norm.default, a(), [4], None, None, 0.0, gives=["", "a", "-a"], reads=[0, 1]),
    case(ATEN.native_layer_norm.default, a(), [4], None, None, 0.0, gives=["", "a", "-a"], reads=[2]),
    case(ATEN.native_layer_norm.default, S(), [4], None, None, 0.0, gives=["", "a", "-a"], asks="a-c", reads=[0, 1, 2]),
    case(ATEN.rms_norm.default, a(), [4], b(4), 0.0, gives="b"),
    case(ATEN.batch_norm.default, a(), None, None, None, None, *TRAINED, gives=""),
    case(ATEN.batch_norm.default, a(), b(4), b(4), None, None, *TRAINED, gives="b"),
    case(ATEN.batch_norm.default, a(2, 4, 3), b(4), X("c", 4), None, None, *TRAINED, gives=shifted("b", "c")),
    case(ATEN.batch_norm.default, a(), None, None, constant(4), constant(4), *STORED, gives="", statistics="a"),
    case(ATEN.batch_norm.default, S(), None, None, constant(4), constant(4), *STORED, gives="", asks="a-c", statistics="a"),
    case(ATEN.batch_norm.default, S(), None, None, None, None, *TRAINED, gives=""),
    case(ATEN.batch_norm.default, S(axes=(0,)), None, None, None, None, *TRAINED, gives="", asks="a-c"),
    case(ATEN.batch_norm.default, P(1, S(), b()), None, None, None, None, *TRAINED, gives=""),
    case(ATEN.batch_norm.default, P(0, a(), b()), None, None, None, None, *TRAINED, gives="", asks="a-b"),
    case(ATEN.instance_norm.default, S(2, 3, 4), b(3), X("c", 3), None, None, *TRAINED, gives=shifted("b", "c")),
    case(ATEN.instance_norm.default, a(2, 3, 4), None, None, constant(3), constant(3), *STORED, gives="", statistics="a"),
    case(ATEN.native_batch_norm.default, S(), None, None, None, None, True, 0.1, 0.0, gives=["", "", ""], reads=[0]),
    case(ATEN.native_batch_norm.default, a(), None, None, None, None, True, 0.1, 0.0, gives=["", "a", "-a"], reads=[0, 1, 2]),
    case(ATEN._native_batch_norm_legit.no_stats, S(), None, None, True, 0.1, 0.0, gives=["", "", ""], reads=[0]),
    case(
        ATEN._native_batch_norm_legit_no_training.default,
        a(),
        None,
        None,
        constant(4),
        constant(4),
        0.1,
        0.0,
        gives=["", "", ""],
        statistics="a",
        reads=[0],
    ),
    *(
        case(
            ATEN._native_batch_norm_legit_functional.default,
            a(),
            None,
            None,
            constant(4),
            constant(4),
            True,
            0.1,
            0.0,
            gives=gives,
            state=state,
            reads=reads,
        )
        for gives, state, reads in [
            (["", "", "", "", ""], "", [0]),
            (["", "a", "-a", "", ""], "", [0, 1, 2]),
            (["", "a", "-a", "", ""], "a", [3]),
            (["", "a", "-a", "", ""], "a", [4]),
        ]
    ),
    case(ATEN.group_norm.default, a(2, 4, 5), 2, None, None, 0.0, gives=""),
    case(ATEN.group_norm.default, S(2, 4, 5), 2, None, None, 0.0, gives="", asks="a-c"),
    case(ATEN.group_norm.default, S(2, 4, 5), 4, b(4), X("d", 4), 0.0, gives=shifted("b", "d")),
    case(ATEN.native_group_norm.default, S(2, 4, 5), None, None, 2, 4, 5, 4, 0.0, gives=["", "", ""], reads=[0]),
    case(ATEN.native_group_norm.default, S(2, 4, 5), None, None, 2, 4, 5, 2, 0.0, gives=["", "", ""], asks="a-c", reads=[0]),
    case(ATEN.native_group_norm.default, a(2, 4, 5), None, None, 2, 4, 5, 2, 0.0, gives=["", "a", "-a"], reads=[0, 1, 2]),
    case(ATEN._weight_norm.default, a(3, 4), b(3, 1), 0, gives="b"),
    case(ATEN._weight_norm_interface.default, a(3, 4), b(3, 1), 0, gives=["b", "a"]),
    case(ATEN.cosine_similarity.default, a(), constant(), 1, 0.0, gives="", eps=[0.0]),
    case(ATEN.cosine_similarity.default, constant(), b(), 1, 1e-7, gives="", eps=[1e-7]),
    case(ATEN.linalg_eigh.default, X("a", value=torch.diag(torch.arange(1.0, 5.0).double())), gives=["a", ""]),
    case(ATEN.linalg_svd.default, a(3, 3), gives=["", "a", ""]),
    case(ATEN.linalg_qr.default, a(3, 3), gives=["", "a"]),
    # attention and softmax
    case(ATTENTION, constant(2, 3, 4), constant(2, 3, 4), a(2, 3, 4), gives="a"),
    case(ATTENTION, a(2, 3, 4), b(2, 3, 4), b(2, 3, 4), gives="b", nonlinear="a+b"),
    case(ATTENTION, a(2, 3, 4), X("-a", 2, 3, 4), b(2, 3, 4), gives="b"),
    case(ATTENTION, *[constant(2, 3, 4)] * 3, b(3, 3), gives="", nonlinear="b"),
    case(ATTENTION, constant(2, 3, 4), S(2, 5, 4, axes=(0, 2), degree=""), b(2, 5, 4), gives="b"),
    case(ATTENTION, X("b", 2, 3, 4), S(2, 5, 4, axes=(0, 2), degree=""), b(2, 5, 4), gives="b", nonlinear="b"),
    case(ATTENTION, constant(2, 3, 4), S(2, 5, 4), b(2, 5, 4), gives="b", asks="a-c", nonlinear="a"),
    case(
        ATEN._scaled_dot_product_attention_math.default,
        constant(2, 3, 4),
        S(2, 5, 4, axes=(0, 2), degree=""),
        b(2, 5, 4),
        gives=["b", ""],
        asks="-c",
        wary=True,
    ),
    case(ATEN.softmax.int, a(), 1, gives="", nonlinear="a"),
    case(ATEN.softmax.int, S(degree=""), 0, gives=""),
    case(ATEN.softmax.int, S(), 0, gives="", nonlinear="a"),
    case(ATEN.softmax.int, S(), -2, gives="", nonlinear="a"),
    case(ATEN.softmax.int, S(), 1, gives="", asks="a-c", nonlinear="a"),
    case(ATEN.softmax.int, S(), -1, gives="", asks="a-c", nonlinear="a"),
    case(ATEN._log_softmax.default, S(degree=""), 0, False, gives=""),
    # the rest of what gives one of its arguments in another shape, or is linear in one
    *(case(getattr(ATEN, name).default, X("a", 3, 3), *rest, gives="a") for name, *rest in ON_A_MATRIX),
    *(case(operation, a(*shape), *rest, gives="a") for operation, shape, *rest in ON_A_TENSOR),
    *(case(getattr(ATEN, name).default, given(torch.complex(positive(), positive()), "a"), gives="a") for name in ON_COMPLEX),
    *(case(operation, a(*shape), *rest, gives=["a", ""]) for operation, shape, *rest in WITH_INDICES),
    # and of the others
    *(case(operation, *arguments, gives="a+b") for operation, *arguments in PRODUCTS),
    *(case(operation, a(), b(), gives="a", asks="a-b") for operation in PAIRS),
    *(case(operation, *arguments, gives="a", asks="a-b") for operation, *arguments in PUT_TOGETHER),
    *(case(operation, X("a", value=SAME), X("b", value=SAME.clone()), gives="", asks="a-b") for operation in COMPARISONS),
    *(case(operation, *arguments, gives=gives) for operation, gives, *arguments in MADE),
    case(ATEN.multiply.Tensor, S(), 2.0, gives=shifted("a", "c")),
    case(ATEN.divide.Tensor, a(), b(), gives="a-b"),
    case(ATEN.true_divide.Tensor, a(), b(), gives="a-b"),
    case(ATEN.linalg_inv.default, a(4, 4), gives="-a"),
    case(ATEN._linalg_svd.default, a(3, 3), gives=["", "a", ""]),
    case(ATEN.addbmm.default, X("b", 3, 5), a(2, 3, 4), b(2, 4, 5), gives="a+b", asks="a"),
    case(ATEN.linalg_multi_dot.default, [a(3, 4), b(4, 5), a(5, 2)], gives="2a+b"),
    case(ATEN.clip.default, a(), 1.0, gives="a", asks="a"),
    case(ATEN.concat.default, [a(), b()], 1, gives=side_by_side(1, "a", "b")),
    case(ATEN.concatenate.default, [a(), b()], 1, gives=side_by_side(1, "a", "b")),
    case(ATEN.embedding_bag.default, a(5, 4), INDEX, given([0, 2]), gives=["a", "", "", ""]),
    case(ATEN._adaptive_avg_pool2d.default, S(2, 3, 4, 4), [2, 2], gives=shifted("a", "c")),
    case(ATEN._adaptive_avg_pool3d.default, S(2, 3, 4, 4, 4), [2, 2, 2], gives=shifted("a", "c")),
    case(ATEN.conv_transpose2d.input, a(2, 3, 5, 5), b(3, 4, 3, 3), X("c", 4), gives=shifted("a+b", "c")),
    case(ATEN.conv_transpose3d.input, a(2, 3, 5, 5, 5), b(3, 4, 3, 3, 3), X("c", 4), gives=shifted("a+b", "c")),
    *(
        case(getattr(ATEN, f"{kind}_pad{n}d").default, S(2, 3, *[4] * n), [1, 1] * n, gives=shifted("a", "c"))
        for kind in ("reflection", "replication")
        for n in (1, 2, 3)
    ),
    case(ATEN.grid_sampler_2d.default, a(1, 2, 4, 4), b(1, 3, 3, 2), 0, 0, False, gives="a", nonlinear="b"),
    case(ATEN.grid_sampler_3d.default, a(1, 2, 4, 4, 4), b(1, 3, 3, 3, 3), 0, 0, False, gives="a", nonlinear="b"),
    case(ATEN._prelu_kernel.default, X("a", value=either_sign()), b(1, 4), gives="a", nonlinear="b"),
    case(VISION.ps_roi_pool.default, a(1, 4, 5, 5), region(""), 1.0, 2, 2, gives=["a", ""]),
    case(ATEN._log_softmax.default, S(), 0, False, gives="", nonlinear="a"),
    case(ATEN._softmax.default, S(), 0, False, gives="", nonlinear="a"),
    case(ATEN.log_softmax.int, S(), 0, gives="", nonlinear="a"),
    case(
        ATEN._batch_norm_with_update.default,
        S(),
        b(4),
        None,
        constant(4),
        constant(4),
        0.1,
        0.0,
        gives=["b", *[""] * 3],
        reads=[0],
    ),
    case(
        ATEN._batch_norm_with_update_functional.default,
        a(),
        None,
        None,
        constant(4),
        constant(4),
        0.1,
        0.0,
        gives=["", "a", "-a", "", "", ""],
        state="a",
        reads=[0, 1, 2, 4],
    ),
    case(
        ATEN._scaled_dot_product_flash_attention_for_cpu.default,
        X("a", 1, 2, 3, 4),
        X("-a", 1, 2, 3, 4),
        b(1, 2, 3, 4),
        gives=["b", ""],
    ),
    # not homogeneous
    case(ATEN.gelu.default, a(), gives="", nonlinear="a"),
    case(ATEN.gelu.default, constant(), gives=""),
    case(ATEN.exp.default, X("a+b"), gives="", nonlinear="a+b"),
    case(ATEN.i0.default, a(), gives="", unknown="a"),
]


ELSEWHERE = """
    sym_size sym_numel sym_stride sym_storage_offset size numel _assert_scalar _assert_async _assert_tensor_metadata
    _functional_assert_async sym_constrain_range empty empty_like new_empty empty_strided new_empty_strided empty_permuted
    stft istft _sparse_mm sparse_coo_tensor _sparse_coo_tensor_unsafe sparse_csr_tensor to_dense _to_dense to_sparse _to_sparse
    coalesce values _values
"""  # sizes, memory without values, and what there are networks of: spectra and sparse tensors
NOT_HERE = """
    cudnn_batch_norm miopen_batch_norm _scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention
    _scaled_dot_product_cudnn_attention _grouped_mm _fused_rms_norm
"""  # on other devices, or in later versions of torch


def test_every_operation_that_may_scale_has_a_case():
    called = [param.values[0]._schema for param in CASES]
    names = {s.name.removeprefix("aten::").removesuffix("_" if s.is_mutable else "/") for s in called}
    asked_for = {name for name, rule in rulebook._RULES.items() if rule is not rules.nonlinear}
    assert asked_for - names == set((ELSEWHERE + NOT_HERE).split())


@pytest.mark.parametrize("operation, arguments, options, gives, conditions, reads, eps, wary", CASES)
def test_a_rule_gives_the_degree_that_numbers_have(operation, arguments, options, gives, conditions, reads, eps, wary):
    degrees, found = applied(operation, arguments, options, reads or ())
    gives = gives if len(gives) > 1 else gives * len(degrees)
    assert [replace(degree, place=None) if isinstance(degree, Shifted) else degree for degree in degrees] == gives
    for kind, asked in conditions.items():
        assert [condition.vector for condition in found.conditions if condition.kind == kind] == asked, kind
    assert sum(map(len, conditions.values())) == len(found.conditions)
    assert [one.eps for one in found.eps] == list(eps)
    for one in found.eps:
        assert one.vector == found.agree(one.node, [found.degree(one.operand)])
    if eps:
        return
    asked = [vector for vectors in conditions.values() for vector in vectors]
    assert misfits(operation, arguments, options, gives, reads, asked) < 1e-10
    if asked:  # and less would not do
        assert (misfits(operation, arguments, options, gives, reads, []) > 1e-8) == (not wary)


def misfits(operation, arguments, options, gives, reads, conditions):
    """Return by how much the outputs of an operation that are read do not grow as said, if its arguments grow so that ..."""
    factors = choices(conditions)
    runs = [outputs(operation, arguments, options, of) for of in factors]
    return max(
        misfit(degree, values, factors)
        for index, (degree, *values) in enumerate(zip(gives, *runs, strict=True))
        if reads is None or index in reads
    )


def others(x):
    """Yield what has the shape of a tensor and is no multiple of one: plus numbers along an axis, and parts along the last."""
    shape, last = x.tensor.shape, x.tensor.ndim - 1
    for axes in {(0,), (min(1, last),)}:
        yield S(*shape, axes=axes, shift="d")
    if shape[last] % 2 == 0:
        yield P(last, *(given(half, degree) for half, degree in zip(either_sign(*shape).chunk(2, last), "bd", strict=True)))


@pytest.mark.parametrize("operation, arguments, options, gives, conditions, reads, eps, wary", CASES)
def test_no_rule_says_what_numbers_do_not_whatever_comes_in(operation, arguments, options, gives, conditions, reads, eps, wary):
    """Each tensor in its turn is one that is not homogeneous: a rule may ask for conditions then, but they must do."""
    for index, x in enumerate(arguments):
        if type(x) is X and x.drawn and x.tensor.numel():
            for other in others(x):
                changed = [*arguments[:index], other, *arguments[index + 1 :]]
                degrees, found = applied(operation, changed, options, reads or ())
                if not found.eps:
                    asked = [condition.vector for condition in found.conditions]
                    assert misfits(operation, changed, options, degrees, reads, asked) < 1e-7, (index, vars(other))


def test_the_norms_and_their_parameters_are_noted():
    x, weight, bias = a(3, 4), X("b", 4), X("c", 4)
    degree, found = applied(ATEN.layer_norm.default, [x, [4], weight, bias, 1e-5], {})
    assert (degree[0].degree, degree[0].shifts, degree[0].axes) == (vector("b"), (vector("c"),), frozenset((1,)))
    assert found.affine == {"b", "c"} and [norm[1] for norm in found.norms] == [vector("a")]
    degree, found = applied(ATEN.batch_norm.default, [a(2, 4, 3), weight, bias, None, None, True, 0.1, 1e-5, False], {})
    assert (degree[0].axes, found.conditions) == (frozenset((1,)), [])


ATTEND = "Normalise queries and keys without trainable affine (QK norm), or freeze their projections."
IN_ATTENTION = [constant(2, 3, 4)] * 2


@pytest.mark.parametrize(
    "remedy, operation, arguments",
    [
        (SMOOTH, ATEN.gelu.default, [a()]),
        (SMOOTH, ATEN.pow.Tensor_Tensor, [a(), constant()]),
        (SMOOTH, ATEN.softmax.int, [S(), 0]),
        (SMOOTH, ATEN.where.self, [given([[True] * 4] * 3, "b"), a(), a()]),
        (SMOOTH, ATEN.grid_sampler.default, [a(1, 2, 4, 4), b(1, 3, 3, 2), 0, 0, False]),
        (SMOOTH, VISION.roi_pool.default, [a(1, 4, 5, 5), region("b"), 1.0, 2, 2]),
        (SMOOTH, ATEN.lerp.Tensor, [a(), a(), b()]),
        (BY_NUMBERS, ATEN.index_select.default, [a(), 0, given([0, 2, 1], "b")]),
        (BY_NUMBERS, ATEN.i0.default, [a()]),
        ("", ATEN.add.Tensor, [a(), b()]),
        (ADDED, ATEN.add.Scalar, [a(), 1.0]),
        (ADDED, ATEN.rsub.Scalar, [a(), 1.0]),
        (BOUNDED, ATEN.clamp.default, [a(), 1.0]),
        (BOUNDED, ATEN.clamp.default, [a(), None, 6.0]),
        ("Compare with 0, or with something that scales alike.", ATEN.gt.Scalar, [a(), 1]),
        ("Freeze the slope.", ATEN.prelu.default, [a(), b(4)]),
        ("Normalise the matrix, or freeze what gives it.", UNITRIANGULAR, [a(4, 4), b(4, 4)]),
        (
            "Freeze what gives the offsets, or normalise them.",
            VISION.deform_conv2d.default, [*deformed(a, offset="c"), *NO_STRIDE, True],
        ),
        (
            "Put the norm in training mode: module.train().",
            ATEN.batch_norm.default, [a(), None, None, constant(4), constant(4), *STORED],
        ),
        (ATTEND, ATTENTION, [a(2, 3, 4)] * 3),
        ("Freeze the attention bias.", ATTENTION, [*IN_ATTENTION, a(2, 3, 4), b(3, 3)]),
        (
            "Read the statistics of the batch.",
            ATEN._native_batch_norm_legit_functional.default, [a(), None, None, constant(4), constant(4), True, 0.1, 0.0],
        ),
    ],
)  # fmt: skip
def test_a_condition_says_what_would_mend_it(remedy, operation, arguments):
    reads = (3,) if "functional" in str(operation) else ()
    _, found = applied(operation, arguments, UPPER if operation is UNITRIANGULAR else {}, reads)
    assert [condition.remedy for condition in found.conditions] == [remedy]


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
