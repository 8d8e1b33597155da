"""The rules: how the degree of what an ATen operation gives follows from the degrees of its arguments.

A rule takes a ``Call``, gives a degree (or several, one per output) and asks for the conditions under which it holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, fx

from explr.degrees import CONSTANT, Degree, Eps, Findings, Parts, Shifted, Vector, combine
from explr.nodes import PER_CHANNEL, arguments_of, nodes_in, operation_name, storage_of, tensors_of

TINY = 1e-3  # a constant up to this size, added to something that scales, is taken for the eps of a hand-written norm
SMOOTH = "Put a norm without trainable affine before it, freeze the parameters that scale it, or use ReLU."
_BY_NUMBERS = "Check it by numbers with explr.lemma1, or write it in operations that have a rule."


def apply_rule(call: Call) -> Degree | list[Degree]:
    """Apply the rule of a call, or the one for unknown operations.

    Whatever the rule did not look at must not scale, so that an overload it does not know is no false proof.
    """
    rule = _RULES.get(call.operation, _unknown)
    result = rule(call)
    if rule not in _INDIFFERENT and not call.operation.endswith("_as"):
        left = [value for name, value in call.arguments.items() if name not in call.consulted and name != "out"]
        for argument in nodes_in(left):
            call.require(call.agree([argument]), "unknown operation", _BY_NUMBERS)
    return result


def _norm(call: Call) -> Degree:
    """As _same, but for the 0-norm, which counts."""
    order = call["ord"] if "ord" in call.arguments else call["p"]
    degree = call.degree(call.first)
    return CONSTANT if order == 0 else degree


def _same(call: Call) -> Degree:
    """Homogeneous of degree 1 in its first argument."""
    return call.degree(call.first)


def _channelwise(call: Call) -> Degree:
    """As _same, and works on each channel alone, so that parts of different degree stay apart."""
    degree = call.raw(call.first)
    if isinstance(degree, Shifted):
        return call.degree(call.first)
    if isinstance(degree, Parts):
        spatial = re.search(r"([123])d", call.operation)
        if degree.axis >= call[call.first].meta["val"].ndim - (int(spatial[1]) if spatial else 0):
            return call.degree(call.first)
    return degree


def _values_and_indices(call: Call) -> Degree | list[Degree]:
    if call["other"] is not None:
        return call.agree([call["self"], call["other"]])
    return [call.degree(call.first), CONSTANT, CONSTANT]


def _power(*exponents: Fraction | int) -> Callable[[Call], list[Degree]]:
    """Outputs that are homogeneous of these degrees in the first argument."""

    def rule(call: Call) -> list[Degree]:
        degree = call.degree(call.first)
        # 1 / 0 is infinite, which has no degree of its own either.
        return [combine(CONSTANT, degree, Fraction(exponent)) for exponent in exponents]

    return rule


def _pow(call: Call) -> Degree:
    base, exponent = call["self"], call["exponent"]
    if isinstance(base, fx.Node) and isinstance(exponent, int | float):
        if exponent == 0:
            return CONSTANT
        return combine(CONSTANT, call.degree("self"), Fraction(exponent).limit_denominator(10**6))
    return _nonlinear(call)


def _prod(call: Call) -> Degree:
    terms = call[call.first].meta["val"].numel() // max(tensors_of(call.node)[0].numel(), 1)
    return combine(CONSTANT, call.degree(call.first), Fraction(terms))


def _product(*factors: str, plus: str = "") -> Callable[[Call], Degree]:
    """Multilinear in the factors, plus one more term."""

    def rule(call: Call) -> Degree:
        total: Vector | None = CONSTANT
        for name in factors:
            arguments = call[name] if isinstance(call[name], list | tuple) else [call[name]]
            for argument in arguments:
                total = combine(total, call.agree([argument])) if argument is not None else total
        if not plus or (call[plus] is not None and call["beta"] == 0):
            return total
        if plus == "bias" and call["bias"] is not None and (shift := call.degree("bias")) is not None and shift != total:
            ndim = call.node.meta["val"].ndim
            spatial = re.search(r"conv.*([123])d", call.operation)
            return Shifted(ndim - (int(spatial[1]) if spatial else 0) - 1, total, shift, call.node)
        return call.join(total, plus)

    return rule


def _divide(call: Call) -> Degree:
    if call["rounding_mode"] is not None:
        return _nonlinear(call)
    return combine(call.degree("self"), _zero_as_constant(call.degree("other")), Fraction(-1))


def _addcdiv(call: Call) -> Degree:
    ratio = combine(call.degree("tensor1"), _zero_as_constant(call.degree("tensor2")), Fraction(-1))
    return call.join(ratio, "self")


def _zero_as_constant(degree: Vector | None) -> Vector:
    return CONSTANT if degree is None else degree


def _sum(*names: str) -> Callable[[Call], Degree]:
    """Terms that must grow alike; a tiny constant among them counts as an eps."""

    def rule(call: Call) -> Degree:
        arguments = [call[name] for name in names if call[name] is not None]
        numbers = [a for a in arguments if isinstance(a, int | float) and not isinstance(a, bool)]
        tensors = [a for a in arguments if isinstance(a, fx.Node)]
        if len(numbers) == len(tensors) == 1:
            size = abs(numbers[0] * (call["alpha"] if isinstance(call["alpha"], int | float) else 1))
            vector = call.agree(tensors)
            if vector and 0 < size <= TINY:
                call.found.eps.append(Eps(call.node, tensors[0], vector, size))
                return vector
        return call.agree(arguments)

    return rule


def _concatenate(call: Call) -> Degree:
    """Parts of different degree are put side by side: whether that matters, the next operation decides."""
    tensors = call["tensors"]
    values = [tensor.meta["val"] for tensor in tensors]
    tensors = [tensor for tensor, value in zip(tensors, values, strict=True) if value.shape != (0,)]
    axis = (call["dim"] or 0) % values[0].ndim
    parts: list[tuple[int, Vector | None]] = []
    for tensor in tensors:
        degree = call.found.degree(tensor)
        size = int(tensor.meta["val"].shape[axis])
        same = isinstance(degree, Parts) and degree.axis == axis
        parts += degree.parts if isinstance(degree, Parts) and same else [(size, call.agree([tensor]))]
    merged = list(dict.fromkeys(frozenset(part.items()) for _, part in parts if part is not None))
    if len(merged) <= 1:
        return dict(merged[0]) if merged else None
    return Parts(axis, tuple(parts), call.node)


def _stack(call: Call) -> Degree:
    return call.agree(call["tensors"])


def _where(call: Call) -> Degree:
    if "other" not in call.arguments:
        return CONSTANT
    call.require(call.degree("condition"), "nonlinear", SMOOTH)
    return call.agree([call["self"], call["other"]])


def _scatter(call: Call) -> Degree:
    if call["reduce"] in ("prod", "multiply"):
        return _nonlinear(call)
    return call.agree(a for a in (call[name] for name in ("self", "src", "source", "value", "values")) if a is not None)


def _pad(call: Call) -> Degree:
    if call["mode"] not in (None, "constant"):
        return call.degree("self")
    return call.agree([call["self"], call["value"] if call["value"] is not None else 0])


def _clamp(call: Call) -> Degree:
    """Bounds at 0 or infinity are cones; a tiny lower bound is an eps."""
    if isinstance(call["min"], int | float) and call["max"] is None:
        return _sum("self", "min")(call)
    return call.agree(a for a in (call["self"], call["min"], call["max"]) if a is not None)


def _interpolate(call: Call) -> Degree:
    """Linear in the first argument; where it looks, given by the second, must not move."""
    call.require(call.degree("grid"), "nonlinear", SMOOTH)
    return call.degree("input")


def _lerp(call: Call) -> Degree:
    call.require(call.degree("weight"), "nonlinear", SMOOTH)
    return call.agree([call["self"], call["end"]])


def _prelu(call: Call) -> Degree:
    call.require(call.degree("weight"), "nonlinear", "Freeze the slope.")
    return call.degree("self")


def _threshold(call: Call) -> Degree:
    return call.agree([call["self"], call["threshold"], call["value"]])


def _copy(call: Call) -> Degree:
    return call.degree("src")


def _fill(call: Call) -> Degree:
    return call.raw("value") if "value" in call.arguments else call.raw("fill_value")


def _free(call: Call) -> Degree:
    """Zeros, or memory that is yet to be written."""
    return None


def _fixed(call: Call) -> Degree:
    """Does not depend on the scale: a sign, an index, a random number."""
    return CONSTANT


def _random(call: Call) -> Degree:
    """Overwrite a tensor with random numbers; where a tensor says how they are distributed, that one must not scale."""
    in_place = call.mutates and not any(isinstance(argument, fx.Node) for argument in call.node.args[1:])
    return CONSTANT if in_place else _nonlinear(call)


def _compare(call: Call) -> Degree:
    call.agree([call["self"], call["other"]], "Compare with 0, or with something that scales alike.")
    return CONSTANT


def _normalise(call: Call) -> Degree | list[Degree]:
    """Degree 0 whatever comes in, then scale and shift by the affine parameters."""
    x = call.raw("input")
    if isinstance(x, Parts | Shifted) and not (call.operation in PER_CHANNEL and x.axis == 1):
        x = call.degree("input")
    training = call["training"] if "training" in call.arguments else call["use_input_stats"]
    if training is False or "no_training" in call.operation:
        call.require(call.degree("input"), "stored statistics", "Put the norm in training mode: module.train().")
    call.found.norms.append((call.node, x))
    for name in ("weight", "bias"):
        if isinstance(call[name], fx.Node):
            call.found.affine |= set(_zero_as_constant(call.degree(name)))
    scale = CONSTANT if call["weight"] is None else call.degree("weight")
    return [call.join(scale, "bias"), *[CONSTANT] * (len(tensors_of(call.node)) - 1)]


def _weight_norm(call: Call) -> list[Degree]:
    """Return the degree of g · v / ‖v‖: that of g, whatever v."""
    return [call.degree("g"), call.degree("v")]


def _cosine_similarity(call: Call) -> Degree:
    for name in ("x1", "x2"):
        vector = call.degree(name)
        if vector:
            call.found.eps.append(Eps(call.node, call[name], vector, float(call["eps"])))
    return CONSTANT


def _attention(call: Call) -> list[Degree]:
    """Linear in the values; the scores, products of queries and keys, go through a softmax."""
    scores = combine(call.degree("query"), call.degree("key"))
    call.require(
        scores, "nonlinear", "Normalise queries and keys without trainable affine (QK norm), or freeze their projections."
    )
    if isinstance(call["attn_mask"], fx.Node):
        call.require(call.degree("attn_mask"), "nonlinear", "Freeze the attention bias.")
    return [call.degree("value"), *[CONSTANT] * (len(tensors_of(call.node)) - 1)]


def _nonlinear(call: Call) -> Degree:
    """Not homogeneous: fine only where nothing that comes in scales."""
    return _insist(call, "nonlinear", SMOOTH)


def _unknown(call: Call) -> Degree:
    """Whatever it does, it gives the same for the same arguments."""
    if call.mutates:  # zeros may be zeros no more
        for node in nodes_in((call.node.args, call.node.kwargs)):
            if isinstance(node.meta.get("val"), Tensor) and call.found.degree(node) is None:
                call.found.storages[storage_of(node)] = CONSTANT
    return _insist(call, "unknown operation", _BY_NUMBERS)


def _insist(call: Call, kind: str, remedy: str) -> Degree:
    call.consulted |= call.arguments.keys()
    for argument in nodes_in((call.node.args, call.node.kwargs)):
        call.require(call.agree([argument]), kind, remedy)
    return CONSTANT


def _table(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


class Call:
    """One call of an ATen operation: its arguments by name, and their degrees."""

    def __init__(self, found: Findings, node: fx.Node) -> None:
        self.found = found
        self.node = node
        self.operation = operation_name(node)
        self.arguments = arguments_of(node)
        self.names: list[str] = []
        self.consulted: set[str] = set()
        self.mutates = False
        if isinstance(node.target, torch._ops.OpOverload):
            schema = node.target._schema
            self.mutates = schema.is_mutable
            self.names = [argument.name for argument in schema.arguments]

    def __getitem__(self, name: str) -> Any:
        self.consulted.add(name)
        return self.arguments.get(name)

    @property
    def first(self) -> str:
        """Name of the first argument."""
        return self.names[0]

    def raw(self, name: str) -> Degree:
        """Return the degree of an argument, in parts if need be."""
        return self.found.degree(self[name])

    def degree(self, name: str) -> Vector | None:
        """Return the one degree of an argument."""
        return self.agree([self[name]])

    def agree(self, arguments: Iterable[Any], remedy: str = "") -> Vector | None:
        """Return the one degree of several arguments."""
        return self.found.agree(self.node, [self.found.degree(argument) for argument in arguments], remedy)

    def join(self, degree: Degree, name: str) -> Vector | None:
        """Return the degree of a sum with an optional argument, such as a bias."""
        degrees = [degree] if self[name] is None else [degree, self.raw(name)]
        return self.found.agree(self.node, degrees)

    def require(self, vector: Vector | None, kind: str, remedy: str) -> None:
        """Ask that something does not scale."""
        self.found.require(vector, kind, self.node, remedy)


# ---- which operation has which rule

_VIEWS = """
    view reshape flatten unflatten permute transpose t swapaxes swapdims movedim moveaxis numpy_T mT mH matrix_H adjoint
    squeeze unsqueeze expand expand_as broadcast_to view_as reshape_as select slice narrow chunk split split_with_sizes
    unsafe_chunk unsafe_split unsafe_split_with_sizes tensor_split hsplit vsplit unbind diagonal as_strided _unsafe_view
    _reshape_alias view_copy permute_copy expand_copy slice_copy select_copy alias_copy t_copy unsqueeze_copy squeeze_copy
    transpose_copy lift_fresh lift_fresh_copy lift alias detach real imag view_as_real view_as_complex resolve_conj
    resolve_neg conj contiguous clone to _to_copy type_as dropout feature_dropout native_dropout
"""
_LINEAR = """
    repeat repeat_interleave tile index _unsafe_index index_select gather take take_along_dim masked_select roll flip fliplr
    flipud rot90 tril triu diag diag_embed unfold im2col col2im pixel_shuffle pixel_unshuffle channel_shuffle
    native_channel_shuffle sum mean nansum nanmean cumsum trace amax amin aminmax std
    linalg_matrix_norm frobenius_norm quantile nanquantile reflection_pad1d reflection_pad2d reflection_pad3d
    replication_pad1d replication_pad2d replication_pad3d upsample_nearest1d upsample_nearest2d upsample_nearest3d
    upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa
    _upsample_bicubic2d_aa fft_fft fft_ifft fft_rfft fft_irfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_fftn fft_ifftn
    fft_rfftn fft_irfftn
"""
_CHANNELWISE = """
    relu leaky_relu rrelu abs neg negative positive dropout feature_dropout contiguous clone to _to_copy detach alias
    max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d
"""
_WITH_INDICES = """
    max min median nanmedian mode sort topk kthvalue cummax cummin native_dropout max_pool1d_with_indices
    max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
"""
_DISCRETE = """
    sign sgn signbit argmax argmin argsort isnan isinf isfinite logical_not logical_and logical_or logical_xor any all
    nonzero count_nonzero ones_like rand_like randn_like randint_like new_ones sym_size sym_numel sym_stride
    sym_storage_offset size numel _assert_scalar _assert_async _assert_tensor_metadata _functional_assert_async
    sym_constrain_range
"""
_NONLINEAR = """
    gelu silu sigmoid tanh exp exp2 expm1 log log2 log10 log1p softmax _softmax log_softmax _log_softmax softmin logsumexp
    logcumsumexp hardswish hardsigmoid hardtanh mish softplus elu selu celu log_sigmoid logsigmoid erf erfc erfinv sin cos
    tan asin acos atan sinh cosh asinh acosh atanh softshrink hardshrink glu alpha_dropout feature_alpha_dropout floor ceil
    round trunc frac remainder fmod logit lstm gru rnn_tanh rnn_relu cumprod multinomial cross_entropy_loss nll_loss
    nll_loss_nd nll_loss_forward binary_cross_entropy binary_cross_entropy_with_logits mse_loss l1_loss smooth_l1_loss
    huber_loss kl_div relu6 floor_divide logaddexp logaddexp2 cdist _cdist_forward pairwise_distance local_response_norm
"""
_ZEROS = """
    zeros zeros_like new_zeros zero empty empty_like new_empty empty_strided new_empty_strided empty_permuted
"""
_FILLS = "fill full full_like new_full scalar_tensor"

Rule = Callable[[Call], Degree | list[Degree]]
_INDIFFERENT = (_fixed, _free, _fill, _copy, _random)  # rules for operations that do not care what was there before

# Keyed by the name of the ATen operation without the underscore of its in-place variant; the overload does not matter.
_RULES: dict[str, Rule] = {
    **_table(_same, _VIEWS + _LINEAR),
    **_table(_norm, "norm linalg_vector_norm linalg_norm"),
    **_table(_channelwise, _CHANNELWISE),
    **_table(_values_and_indices, _WITH_INDICES),
    **_table(_nonlinear, _NONLINEAR),
    **_table(_fixed, _DISCRETE),
    **_table(_free, _ZEROS),
    **_table(_random, "bernoulli uniform normal random exponential geometric cauchy log_normal"),
    **_table(_fill, _FILLS),
    **_table(_compare, "eq ne lt le gt ge equal greater greater_equal less less_equal not_equal atan2 arctan2"),
    **_table(
        _product("input", "weight", plus="bias"),
        "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution _convolution",
    ),
    **_table(_product("input1", "input2", "weight", plus="bias"), "bilinear"),
    **_table(_product("self", "other"), "mul multiply matmul vdot inner kron tensordot cross linalg_cross"),
    **_table(_product("input", "other"), "linalg_matmul"),
    **_table(_product("x", "y"), "linalg_vecdot"),
    **_table(_product("self", "mat2"), "mm bmm"),
    **_table(_product("self", "vec"), "mv"),
    **_table(_product("self", "tensor"), "dot"),
    **_table(_product("self", "vec2"), "outer ger"),
    **_table(_product("tensors"), "einsum linalg_multi_dot"),
    **_table(_product("mat1", "mat2", plus="self"), "addmm"),
    **_table(_product("mat", "vec", plus="self"), "addmv"),
    **_table(_product("vec1", "vec2", plus="self"), "addr"),
    **_table(_product("batch1", "batch2", plus="self"), "baddbmm addbmm"),
    **_table(_product("tensor1", "tensor2", plus="self"), "addcmul"),
    **_table(_product("weight", "per_sample_weights"), "embedding embedding_bag _embedding_bag"),
    **_table(_divide, "div divide true_divide"),
    **_table(_addcdiv, "addcdiv"),
    **_table(_power(Fraction(1, 2)), "sqrt"),
    **_table(_power(Fraction(-1, 2)), "rsqrt"),
    **_table(_power(-1), "reciprocal"),
    **_table(_power(2), "square var"),
    **_table(_power(2, 1), "var_mean"),
    **_table(_power(1, 1), "std_mean"),
    **_table(_pow, "pow"),
    **_table(_prod, "prod"),
    **_table(_sum("self", "other"), "add sub subtract rsub maximum minimum fmax fmin hypot"),
    **_table(_concatenate, "cat concat concatenate"),
    **_table(_stack, "stack hstack vstack dstack column_stack row_stack block_diag"),
    **_table(_where, "where"),
    **_table(
        _scatter,
        "masked_fill masked_scatter index_put _unsafe_index_put _index_put_impl index_copy index_add index_fill scatter "
        "scatter_add scatter_reduce select_scatter slice_scatter diagonal_scatter",
    ),
    **_table(_pad, "pad constant_pad_nd"),
    **_table(_clamp, "clamp clip clamp_min clamp_max"),
    **_table(_lerp, "lerp"),
    **_table(_interpolate, "grid_sampler grid_sampler_2d grid_sampler_3d"),
    **_table(_prelu, "prelu _prelu_kernel"),
    **_table(_threshold, "threshold"),
    **_table(_copy, "copy"),
    **_table(
        _normalise,
        " ".join(PER_CHANNEL)
        + " _native_batch_norm_legit_no_training layer_norm native_layer_norm group_norm native_group_norm "
        "rms_norm _fused_rms_norm",
    ),
    **_table(_weight_norm, "_weight_norm _weight_norm_interface"),
    **_table(_cosine_similarity, "cosine_similarity"),
    **_table(
        _attention,
        "scaled_dot_product_attention _scaled_dot_product_attention_math _scaled_dot_product_flash_attention "
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention "
        "_scaled_dot_product_cudnn_attention",
    ),
}
# Operations that the table of a report leaves out, because nothing happens to a degree in them.
QUIET = frozenset((_VIEWS + _DISCRETE + _ZEROS + _FILLS + " copy").split())
