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
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d
    upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa fft_fft fft_ifft fft_rfft fft_irfft
    fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_fftn fft_ifftn fft_rfftn fft_irfftn stft istft linalg_svdvals linalg_eigvalsh
    to_dense _to_dense to_sparse _to_sparse coalesce values _values
"""
_KEEPING_SHIFTS = """
    neg negative positive contiguous clone to _to_copy detach alias max_pool1d max_pool2d max_pool3d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d
"""
_WITH_INDICES = """
    max min median nanmedian mode sort topk kthvalue cummax cummin native_dropout max_pool1d_with_indices
    max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
"""
_DISCRETE = """
    sign sgn signbit argmax argmin argsort logical_not logical_and logical_or logical_xor any all nonzero count_nonzero
"""
_FIXED = """
    isnan isinf isfinite ones_like rand_like randn_like randint_like new_ones sym_size sym_numel sym_stride sym_storage_offset
    size numel _assert_scalar _assert_async _assert_tensor_metadata _functional_assert_async sym_constrain_range
"""
_NONLINEAR = """
    gelu silu sigmoid tanh exp exp2 expm1 log log2 log10 log1p softmin logsumexp
    logcumsumexp hardswish hardsigmoid hardtanh mish softplus elu selu celu log_sigmoid logsigmoid erf erfc erfinv sin cos
    tan asin acos atan sinh cosh asinh acosh atanh softshrink hardshrink glu alpha_dropout feature_alpha_dropout floor ceil
    round trunc frac remainder fmod logit lstm lstm_cell gru gru_cell rnn_tanh rnn_tanh_cell rnn_relu rnn_relu_cell cumprod
    multinomial cross_entropy_loss nll_loss nll_loss_nd nll_loss_forward binary_cross_entropy binary_cross_entropy_with_logits
    mse_loss l1_loss smooth_l1_loss huber_loss kl_div relu6 floor_divide logaddexp logaddexp2 cdist _cdist_forward
    pairwise_distance local_response_norm matrix_exp linalg_matrix_exp embedding_renorm
"""
_ZEROS = """
    zeros zeros_like new_zeros zero empty empty_like new_empty empty_strided new_empty_strided empty_permuted
"""
_FILLS = "fill full full_like new_full scalar_tensor"

_INDIFFERENT = (r.fixed, r.free, r.fill, r.copy, r.random)  # rules for operations that do not care what was there before

_ROWS: list[tuple[str, Rule]] = [
    (_VIEWS, r.seen),
    (_LINEAR, r.same),
    ("norm linalg_vector_norm linalg_norm", r.norm),
    ("relu leaky_relu rrelu abs dropout feature_dropout", lambda call: r.channelwise(call, keeps_shift=False)),
    (_KEEPING_SHIFTS, lambda call: r.channelwise(call, keeps_shift=True)),
    ("avg_pool1d avg_pool2d avg_pool3d", r.avg_pool),
    (_WITH_INDICES, r.values_and_indices),
    (_NONLINEAR, r.nonlinear),
    ("softmax _softmax log_softmax _log_softmax", r.softmax),
    (_DISCRETE, r.discrete),
    (_FIXED, r.fixed),
    (_ZEROS, r.free),
    ("bernoulli uniform normal random exponential geometric cauchy log_normal", r.random),
    (_FILLS, r.fill),
    ("eq ne lt le gt ge equal greater greater_equal less less_equal not_equal atan2 arctan2", r.compare),
    (
        "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution _convolution",
        lambda call: r.affine(call, "input", "weight"),
    ),
    ("bilinear", lambda call: r.affine(call, "input1", "input2", "weight")),
    ("mul multiply", r.times),
    ("matmul linalg_matmul", lambda call: r.matmul(call, "self", "other")),
    ("vdot inner kron tensordot cross linalg_cross", lambda call: r.product(call, "self", "other")),
    ("linalg_vecdot", lambda call: r.product(call, "x", "y")),
    ("mm bmm", lambda call: r.matmul(call, "self", "mat2")),
    ("mv", lambda call: r.product(call, "self", "vec")),
    ("dot", lambda call: r.product(call, "self", "tensor")),
    ("outer ger", lambda call: r.product(call, "self", "vec2")),
    ("linalg_multi_dot", lambda call: r.product(call, "tensors")),
    ("einsum", r.einsum),
    ("addmm", lambda call: r.product(call, "mat1", "mat2", plus="self")),
    ("addmv", lambda call: r.product(call, "mat", "vec", plus="self")),
    ("addr", lambda call: r.product(call, "vec1", "vec2", plus="self")),
    ("baddbmm addbmm", lambda call: r.product(call, "batch1", "batch2", plus="self")),
    ("addcmul", lambda call: r.product(call, "tensor1", "tensor2", plus="self")),
    ("embedding", lambda call: r.product(call, "weight")),
    ("embedding_bag _embedding_bag", r.values),
    ("_grouped_mm", lambda call: r.product(call, "self", "mat2", plus="bias")),
    ("_sparse_mm", lambda call: r.product(call, "sparse", "dense")),
    ("sparse_coo_tensor _sparse_coo_tensor_unsafe sparse_csr_tensor", lambda call: r.product(call, "values")),
    ("torchvision::deform_conv2d", r.deform_conv),
    ("torchvision::roi_align torchvision::roi_pool torchvision::ps_roi_align torchvision::ps_roi_pool", r.roi_pool),
    ("view", r.view),
    ("nan_to_num", r.nan_to_num),
    ("linalg_svd _linalg_svd", lambda call: r.decompose(call, 0, 1, 0)),
    ("linalg_qr", lambda call: r.decompose(call, 0, 1)),
    ("linalg_eigh", lambda call: r.decompose(call, 1, 0)),
    ("linalg_solve linalg_solve_triangular", r.solve),
    ("div divide true_divide", r.divide),
    ("addcdiv", r.addcdiv),
    ("sqrt", lambda call: r.power(call, Fraction(1, 2))),
    ("rsqrt", lambda call: r.power(call, Fraction(-1, 2))),
    ("reciprocal linalg_inv inverse", lambda call: r.power(call, -1)),
    ("square var", lambda call: r.power(call, 2)),
    ("var_mean", lambda call: r.power(call, 2, 1)),
    ("std_mean", lambda call: r.power(call, 1, 1)),
    ("pow", r.power_of),
    ("prod", r.prod),
    ("add sub subtract rsub maximum minimum fmax fmin hypot", lambda call: r.sum_of(call, "self", "other")),
    ("cat concat concatenate", r.concatenate),
    ("stack hstack vstack dstack column_stack row_stack block_diag", r.stack),
    ("where", r.where),
    (
        "masked_fill masked_scatter index_put _unsafe_index_put _index_put_impl index_copy index_add index_fill scatter "
        "scatter_add scatter_reduce select_scatter slice_scatter diagonal_scatter",
        r.scatter,
    ),
    ("pad constant_pad_nd", r.pad),
    (
        "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d "
        "_pad_circular",
        r.repeating_pad,
    ),
    ("clamp clip clamp_min clamp_max", r.clamp),
    ("lerp", r.lerp),
    ("grid_sampler grid_sampler_2d grid_sampler_3d", r.interpolate),
    ("prelu _prelu_kernel", r.prelu),
    ("threshold", r.threshold),
    ("copy", r.copy),
    (
        " ".join(PER_CHANNEL)
        + " _native_batch_norm_legit_no_training layer_norm native_layer_norm group_norm native_group_norm "
        "rms_norm _fused_rms_norm",
        r.normalise,
    ),
    ("_weight_norm _weight_norm_interface", r.weight_norm),
    ("cosine_similarity", r.cosine_similarity),
    (
        "scaled_dot_product_attention _scaled_dot_product_attention_math _scaled_dot_product_flash_attention "
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention "
        "_scaled_dot_product_cudnn_attention",
        r.attention,
    ),
]
# Keyed by the name of the ATen operation without the underscore of its in-place variant; the overload does not matter.
_RULES: dict[str, Rule] = {name: rule for names, rule in _ROWS for name in names.split()}
# Operations that the table of a report leaves out, because nothing happens to a degree in them.
QUIET = frozenset(("view" + _VIEWS + _DISCRETE + _FIXED + _ZEROS + _FILLS + " copy").split())
