"""Which operation has which rule."""

from __future__ import annotations

from fractions import Fraction

from explr.invariance import rules as r
from explr.invariance.calls import BY_NUMBERS, Call
from explr.invariance.degrees import Degree
from explr.invariance.graph import PER_CHANNEL, nodes_in
from explr.invariance.rules import Rule


def apply_rule(call: Call) -> Degree | list[Degree]:
    """Apply the rule of a call, or the one for unknown operations.

    Whatever the rule did not look at must not scale, so that an overload it does not know is no false proof.
    """
    rule = _RULES.get(call.operation, r.unknown)
    result = rule(call)
    if rule not in _INDIFFERENT and not call.operation.endswith("_as"):
        left = [value for name, value in call.arguments.items() if name not in call.consulted and name != "out"]
        for argument in nodes_in(left):
            call.require(call.agree([argument]), "unknown operation", BY_NUMBERS)
    return result


def _table(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


_VIEWS = """
    reshape flatten unflatten permute transpose t swapaxes swapdims movedim moveaxis numpy_T mT mH matrix_H adjoint
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
    linalg_matrix_norm frobenius_norm quantile nanquantile upsample_nearest1d upsample_nearest2d upsample_nearest3d
    upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa
    _upsample_bicubic2d_aa fft_fft fft_ifft fft_rfft fft_irfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_fftn fft_ifftn
    fft_rfftn fft_irfftn stft istft linalg_svdvals linalg_eigvalsh to_dense _to_dense to_sparse _to_sparse coalesce values
    _values
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
    gelu silu sigmoid tanh exp exp2 expm1 log log2 log10 log1p softmin logsumexp
    logcumsumexp hardswish hardsigmoid hardtanh mish softplus elu selu celu log_sigmoid logsigmoid erf erfc erfinv sin cos
    tan asin acos atan sinh cosh asinh acosh atanh softshrink hardshrink glu alpha_dropout feature_alpha_dropout floor ceil
    round trunc frac remainder fmod logit lstm gru rnn_tanh rnn_relu cumprod multinomial cross_entropy_loss nll_loss
    nll_loss_nd nll_loss_forward binary_cross_entropy binary_cross_entropy_with_logits mse_loss l1_loss smooth_l1_loss
    huber_loss kl_div relu6 floor_divide logaddexp logaddexp2 cdist _cdist_forward pairwise_distance local_response_norm
    matrix_exp linalg_matrix_exp embedding_renorm
"""
_ZEROS = """
    zeros zeros_like new_zeros zero empty empty_like new_empty empty_strided new_empty_strided empty_permuted
"""
_FILLS = "fill full full_like new_full scalar_tensor"

_INDIFFERENT = (r.fixed, r.free, r.fill, r.copy, r.random)  # rules for operations that do not care what was there before

# Keyed by the name of the ATen operation without the underscore of its in-place variant; the overload does not matter.
_RULES: dict[str, Rule] = {
    **_table(r.seen, _VIEWS),
    **_table(r.same, _LINEAR),
    **_table(r.norm, "norm linalg_vector_norm linalg_norm"),
    **_table(r.channelwise, _CHANNELWISE),
    **_table(r.values_and_indices, _WITH_INDICES),
    **_table(r.nonlinear, _NONLINEAR),
    **_table(r.softmax, "softmax _softmax log_softmax _log_softmax"),
    **_table(r.fixed, _DISCRETE),
    **_table(r.free, _ZEROS),
    **_table(r.random, "bernoulli uniform normal random exponential geometric cauchy log_normal"),
    **_table(r.fill, _FILLS),
    **_table(r.compare, "eq ne lt le gt ge equal greater greater_equal less less_equal not_equal atan2 arctan2"),
    **_table(
        r.affine("input", "weight"),
        "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution _convolution",
    ),
    **_table(r.affine("input1", "input2", "weight"), "bilinear"),
    **_table(r.times, "mul multiply"),
    **_table(r.matmul("self", "other"), "matmul"),
    **_table(r.product("self", "other"), "vdot inner kron tensordot cross linalg_cross"),
    **_table(r.product("input", "other"), "linalg_matmul"),
    **_table(r.product("x", "y"), "linalg_vecdot"),
    **_table(r.matmul("self", "mat2"), "mm bmm"),
    **_table(r.product("self", "vec"), "mv"),
    **_table(r.product("self", "tensor"), "dot"),
    **_table(r.product("self", "vec2"), "outer ger"),
    **_table(r.product("tensors"), "linalg_multi_dot"),
    **_table(r.einsum, "einsum"),
    **_table(r.product("mat1", "mat2", plus="self"), "addmm"),
    **_table(r.product("mat", "vec", plus="self"), "addmv"),
    **_table(r.product("vec1", "vec2", plus="self"), "addr"),
    **_table(r.product("batch1", "batch2", plus="self"), "baddbmm addbmm"),
    **_table(r.product("tensor1", "tensor2", plus="self"), "addcmul"),
    **_table(r.product("weight"), "embedding"),
    **_table(r.values, "embedding_bag _embedding_bag"),
    **_table(r.product("self", "mat2", plus="bias"), "_grouped_mm"),
    **_table(r.product("sparse", "dense"), "_sparse_mm"),
    **_table(r.product("values"), "sparse_coo_tensor _sparse_coo_tensor_unsafe sparse_csr_tensor"),
    **_table(r.deform_conv, "torchvision::deform_conv2d"),
    **_table(r.roi_pool, "torchvision::roi_align torchvision::roi_pool torchvision::ps_roi_align torchvision::ps_roi_pool"),
    **_table(r.view, "view"),
    **_table(r.nan_to_num, "nan_to_num"),
    **_table(r.decompose(0, 1, 0), "linalg_svd _linalg_svd"),
    **_table(r.decompose(0, 1), "linalg_qr"),
    **_table(r.decompose(1, 0), "linalg_eigh"),
    **_table(r.solve, "linalg_solve linalg_solve_triangular"),
    **_table(r.divide, "div divide true_divide"),
    **_table(r.addcdiv, "addcdiv"),
    **_table(r.power(Fraction(1, 2)), "sqrt"),
    **_table(r.power(Fraction(-1, 2)), "rsqrt"),
    **_table(r.power(-1), "reciprocal linalg_inv inverse"),
    **_table(r.power(2), "square var"),
    **_table(r.power(2, 1), "var_mean"),
    **_table(r.power(1, 1), "std_mean"),
    **_table(r.power_of, "pow"),
    **_table(r.prod, "prod"),
    **_table(r.sum_of("self", "other"), "add sub subtract rsub maximum minimum fmax fmin hypot"),
    **_table(r.concatenate, "cat concat concatenate"),
    **_table(r.stack, "stack hstack vstack dstack column_stack row_stack block_diag"),
    **_table(r.where, "where"),
    **_table(
        r.scatter,
        "masked_fill masked_scatter index_put _unsafe_index_put _index_put_impl index_copy index_add index_fill scatter "
        "scatter_add scatter_reduce select_scatter slice_scatter diagonal_scatter",
    ),
    **_table(r.pad, "pad constant_pad_nd"),
    **_table(
        r.repeating_pad,
        "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d "
        "_pad_circular",
    ),
    **_table(r.clamp, "clamp clip clamp_min clamp_max"),
    **_table(r.lerp, "lerp"),
    **_table(r.interpolate, "grid_sampler grid_sampler_2d grid_sampler_3d"),
    **_table(r.prelu, "prelu _prelu_kernel"),
    **_table(r.threshold, "threshold"),
    **_table(r.copy, "copy"),
    **_table(
        r.normalise,
        " ".join(PER_CHANNEL)
        + " _native_batch_norm_legit_no_training layer_norm native_layer_norm group_norm native_group_norm "
        "rms_norm _fused_rms_norm",
    ),
    **_table(r.weight_norm, "_weight_norm _weight_norm_interface"),
    **_table(r.cosine_similarity, "cosine_similarity"),
    **_table(
        r.attention,
        "scaled_dot_product_attention _scaled_dot_product_attention_math _scaled_dot_product_flash_attention "
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention "
        "_scaled_dot_product_cudnn_attention",
    ),
}
# Operations that the table of a report leaves out, because nothing happens to a degree in them.
QUIET = frozenset(("view" + _VIEWS + _DISCRETE + _ZEROS + _FILLS + " copy").split())
