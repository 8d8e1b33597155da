"""The networks that ``tools.zoo`` asks about, and how each is built: with random weights, in training mode, on small inputs.

They are torchvision's models for classification, segmentation and video, and, where the libraries are installed, of timm the
smallest network of every family, of transformers some eighty architectures, of segmentation_models_pytorch every decoder, of
torch_geometric the models for graphs. Nothing is downloaded. A transformer that is too large to be asked about in seconds has
fewer layers or less width than its publication, and its name says so.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

LIBRARIES = ("torchvision", "timm", "transformers", "segmentation_models_pytorch", "torch_geometric")

# Inputs are as small as a network takes. A transformer's position embedding belongs to one size: it keeps that.
IMAGE, LARGE, TOKENS = (4, 3, 64, 64), (2, 3, 224, 224), (2, 16)
SHAPES: dict[str, tuple[int, ...]] = {"inception_v3": (2, 3, 299, 299)}
SHAPES |= dict.fromkeys(("maxvit_t", "vit_b_16", "vit_b_32", "vit_h_14", "vit_l_16", "vit_l_32"), LARGE)
_VIDEOS = {"mvit_v1_b": (1, 3, 16, 224, 224), "mvit_v2_s": (1, 3, 16, 224, 224), "s3d": (1, 3, 16, 224, 224)}
_VIDEOS |= dict.fromkeys(("mc3_18", "r2plus1d_18", "r3d_18", "swin3d_t"), (2, 3, 8, 64, 64))
_SEGMENTING = ("deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "fcn_resnet50", "lraspp_mobilenet_v3_large")
SHAPES |= _VIDEOS | dict.fromkeys(_SEGMENTING, IMAGE)

_TIMM_SMALL = """
    resnet50d seresnet50 res2net50_26w_4s resnetv2_50 resnetv2_50x1_bit nf_resnet50 dm_nfnet_f0 cspresnet50 darknet53 dla34
    hrnet_w18_small repvgg_a0 mobilenetv4_conv_small efficientnet_b0 ghostnet_100 rexnet_100 xception41 ese_vovnet19b_dw
    convnext_atto convnextv2_atto inception_next_atto convmixer_768_32 edgenext_xx_small mambaout_femto
    densenet121 dpn48b regnetx_002 regnety_002 legacy_seresnet18 skresnet18 resnest14d selecsls42 tresnet_m hardcorenas_a
    hgnetv2_b0 lcnet_050 lcnetv2_small repghostnet_050 repvit_m0_9 fasternet_t0 cspnext_tiny starnet_s050 vgg11_bn
    mobileone_s0 mobilenetv3_small_050 mobilenetv2_050 mnasnet_small tinynet_e fbnetc_100 spnasnet_100 mixnet_s gernet_s
    ecaresnet26t lambda_resnet26t hrnet_w18_small_v2 wide_resnet50_2 resnext50_32x4d resnetrs50 res2next50 dla46_c
    cs3darknet_s rdnet_tiny gcresnext26ts
"""
_TIMM_LARGE = """
    deit_tiny_patch16_224 deit3_small_patch16_224 swin_tiny_patch4_window7_224 cait_xxs24_224 xcit_nano_12_p16_224 pvt_v2_b0
    poolformer_s12 mixer_s16_224 resmlp_12_224 gmlp_s16_224 levit_128s coatnet_nano_rw_224 efficientvit_b0 fastvit_t8
    tiny_vit_5m_224 focalnet_tiny_srf davit_tiny twins_svt_small eva02_tiny_patch14_224 beit_base_patch16_224
"""
# At the size that they were made for.
_TIMM_OWN = """
    vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 vit_relpos_small_patch16_224 samvit_base_patch16_224 vitamin_small_224
    convit_tiny coat_lite_tiny crossvit_tiny_240 csatv2 cpubone_nano efficientformer_l1 efficientformerv2_s0 efficientvim_m1
    efficientvit_m0 gcvit_xxtiny hiera_tiny_224 iformer_t inception_resnet_v2 inception_v3 inception_v4 lowformer_b0
    mobilevit_xxs mobilevitv2_050 mvitv2_tiny nest_tiny nextvit_small nasnetalarge pnasnet5large pit_ti_224
    sequencer2d_s shvit_s1 swiftformer_xs swinv2_tiny_window8_256 swinv2_cr_tiny_224 tnt_s_legacy_patch16_224 visformer_tiny
    volo_d1_224 caformer_s18 convformer_s18 maxvit_pico_rw_256 maxxvit_rmlp_nano_rw_256 halonet26t botnet26t_256
    legacy_xception convnext_zepto_rms bat_resnext26ts
"""
TIMM: dict[str, tuple[int, ...] | None] = {
    **dict.fromkeys(_TIMM_SMALL.split(), IMAGE),
    **dict.fromkeys(_TIMM_LARGE.split(), LARGE),
    **dict.fromkeys(_TIMM_OWN.split()),
}

_Options = dict[str, Any]
_LAYERS = {"num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 1536}
_SMALL: _Options = {"hidden_size": 512, **_LAYERS}  # "4 layers of width 512"
_GROUPED: _Options = {**_SMALL, "num_key_value_heads": 2}
_HEADS: _Options = {**_GROUPED, "head_dim": 64}
_EXPERTS: _Options = {**_GROUPED, "moe_intermediate_size": 256, "num_experts_per_tok": 2}
# task → name → class of the configuration, what it says (else its defaults, which are those of the first network of that name)
TRANSFORMERS: dict[str, dict[str, tuple[str, _Options]]] = {
    "CausalLM": {
        "GPT-2": ("GPT2Config", {}),
        "OPT-125M": ("OPTConfig", {}),
        "Pythia-70M": (
            "GPTNeoXConfig",
            {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 2048}
            | {"vocab_size": 50304},
        ),
        "SmolLM-135M (Llama)": (
            "LlamaConfig",
            {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
            | {"intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True},
        ),
        "Qwen2-0.5B": (
            "Qwen2Config",
            {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2}
            | {"intermediate_size": 4864, "tie_word_embeddings": True},
        ),
        "Qwen3-0.6B": (
            "Qwen3Config",
            {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8}
            | {"intermediate_size": 3072, "tie_word_embeddings": True},
        ),
        "OLMo-2, 4 layers of width 512": (
            "Olmo2Config",
            {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 2048},
        ),
        "OpenAI GPT": ("OpenAIGPTConfig", {}),
        "GPT-Neo-125M": (
            "GPTNeoConfig",
            {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "attention_types": [[["global", "local"], 6]]},
        ),
        "Mamba-130M": ("MambaConfig", {"num_hidden_layers": 24, "hidden_size": 768}),
        "RWKV-169M": ("RwkvConfig", {"hidden_size": 768, "num_hidden_layers": 12}),
        "GPT-J, 4 layers of width 512": ("GPTJConfig", {"n_embd": 512, "n_layer": 4, "n_head": 8, "rotary_dim": 32}),
        "CodeGen, 4 layers of width 512": ("CodeGenConfig", {"n_embd": 512, "n_layer": 4, "n_head": 8, "rotary_dim": 32}),
        "BLOOM, 4 layers of width 512": ("BloomConfig", {"hidden_size": 512, "n_layer": 4, "n_head": 8}),
        "Falcon, 4 layers of width 512": ("FalconConfig", _SMALL),
        "MPT, 4 layers of width 512": ("MptConfig", {"d_model": 512, "n_layers": 4, "n_heads": 8}),
        "CTRL, 4 layers of width 512": ("CTRLConfig", {"n_embd": 512, "n_layer": 4, "n_head": 8, "dff": 1536}),
        "GPT-BigCode, 4 layers of width 512": ("GPTBigCodeConfig", {"n_embd": 512, "n_layer": 4, "n_head": 8}),
        "BioGPT, 4 layers of width 512": ("BioGptConfig", _SMALL),
        "XGLM, 4 layers of width 512": ("XGLMConfig", {"d_model": 512, "num_layers": 4, "attention_heads": 8, "ffn_dim": 1536}),
        "Persimmon, 4 layers of width 512": ("PersimmonConfig", _SMALL),
        "Phi, 4 layers of width 512": ("PhiConfig", _SMALL),
        "Phi-3, 4 layers of width 512": ("Phi3Config", {**_SMALL, "pad_token_id": 0}),
        "Gemma, 4 layers of width 512": ("GemmaConfig", _HEADS),
        "Gemma 2, 4 layers of width 512": ("Gemma2Config", _HEADS),
        "Gemma 3, 4 layers of width 512": ("Gemma3TextConfig", _HEADS),
        "Mistral, 4 layers of width 512": ("MistralConfig", _GROUPED),
        "Mixtral, 4 layers of width 512": ("MixtralConfig", _GROUPED),
        "Cohere, 4 layers of width 512": ("CohereConfig", _GROUPED),
        "StableLM, 4 layers of width 512": ("StableLmConfig", _GROUPED),
        "StarCoder 2, 4 layers of width 512": ("Starcoder2Config", _GROUPED),
        "OLMo, 4 layers of width 512": ("OlmoConfig", _SMALL),
        "OLMoE, 4 layers of width 512": ("OlmoeConfig", {**_GROUPED, "num_experts": 8, "num_experts_per_tok": 2}),
        "Granite, 4 layers of width 512": ("GraniteConfig", _GROUPED),
        "Qwen2-MoE, 4 layers of width 512": (
            "Qwen2MoeConfig",
            {**_EXPERTS, "num_experts": 8, "shared_expert_intermediate_size": 256},
        ),
        "Qwen3-MoE, 4 layers of width 512": ("Qwen3MoeConfig", {**_EXPERTS, "num_experts": 8, "head_dim": 64}),
        "GLM, 4 layers of width 512": ("GlmConfig", {**_HEADS, "pad_token_id": 0}),
        "Helium, 4 layers of width 512": ("HeliumConfig", _HEADS),
        "Nemotron, 4 layers of width 512": ("NemotronConfig", {**_HEADS}),
        "SmolLM3, 4 layers of width 512": ("SmolLM3Config", {**_GROUPED, "pad_token_id": 0}),
        "Exaone 4, 4 layers of width 512": ("Exaone4Config", _GROUPED),
        "OLMo-3, 4 layers of width 512": ("Olmo3Config", _SMALL),
        "GPT-OSS, 4 layers of width 512": ("GptOssConfig", {**_HEADS, "num_local_experts": 8, "num_experts_per_tok": 2}),
    },
    "MaskedLM": {
        "BERT-base": ("BertConfig", {}),
        "RoBERTa-base": ("RobertaConfig", {}),
        "DistilBERT": ("DistilBertConfig", {}),
        "ALBERT-base": ("AlbertConfig", {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}),
        "ELECTRA-small": ("ElectraConfig", {}),
        "MobileBERT": ("MobileBertConfig", {}),
        "DeBERTa-base": ("DebertaConfig", {}),
        "DeBERTa-v3-base": (
            "DebertaV2Config",
            {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
            | {"relative_attention": True, "position_buckets": 256, "pos_att_type": ["p2c", "c2p"]},
        ),
        "MPNet-base": ("MPNetConfig", {}),
        "SqueezeBERT": ("SqueezeBertConfig", {}),
        "FNet-base": ("FNetConfig", {}),
        "ConvBERT-base": ("ConvBertConfig", {}),
        "RoFormer-base": ("RoFormerConfig", {}),
        "Nyströmformer": ("NystromformerConfig", {}),
        "LayoutLM-base": ("LayoutLMConfig", {}),
        "ModernBERT-base": ("ModernBertConfig", {}),
        "ESM, 6 layers of width 320": (
            "EsmConfig",
            {"vocab_size": 33, "hidden_size": 320, "num_hidden_layers": 6, "num_attention_heads": 20}
            | {"intermediate_size": 1280, "pad_token_id": 1, "mask_token_id": 32, "position_embedding_type": "rotary"},
        ),
        "XLM-RoBERTa-base": ("XLMRobertaConfig", {}),
        "Funnel-small": ("FunnelConfig", {}),
    },
    "Seq2SeqLM": {
        "T5-small": ("T5Config", {}),
        "BART-base": (
            "BartConfig",
            {"d_model": 768, "encoder_layers": 6, "decoder_layers": 6, "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072}
            | {"encoder_attention_heads": 12, "decoder_attention_heads": 12},
        ),
        "Marian": (
            "MarianConfig",
            {"d_model": 512, "encoder_layers": 6, "decoder_layers": 6, "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048}
            | {"encoder_attention_heads": 8, "decoder_attention_heads": 8},
        ),
        "Blenderbot-small": ("BlenderbotSmallConfig", {}),
        "Pegasus, 4 layers of width 512": (
            "PegasusConfig",
            {"d_model": 512, "encoder_layers": 4, "decoder_layers": 4, "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048}
            | {"encoder_attention_heads": 8, "decoder_attention_heads": 8},
        ),
        "Switch-base, 4 experts": ("SwitchTransformersConfig", {"num_experts": 4, "num_layers": 4, "num_decoder_layers": 4}),
        "UMT5-small": ("UMT5Config", {"vocab_size": 32128}),
    },
    "ImageClassification": {
        "ViT-base": ("ViTConfig", {}),
        "BEiT-base": ("BeitConfig", {}),
        "ConvNeXt-tiny": ("ConvNextConfig", {}),
        "Swin-tiny": ("SwinConfig", {}),
        "Swin-v2-tiny": ("Swinv2Config", {}),
        "PVT-tiny": ("PvtConfig", {}),
        "PoolFormer-S12": ("PoolFormerConfig", {}),
        "MobileViT-small": ("MobileViTConfig", {}),
        "MobileNet-v1": ("MobileNetV1Config", {}),
        "ResNet-50": ("ResNetConfig", {}),
        "RegNet": ("RegNetConfig", {}),
        "LeViT": ("LevitConfig", {"architectures": ["LevitForImageClassification"]}),  # which it does not say itself
        "CvT-13": ("CvtConfig", {}),
        "DINOv2-base": ("Dinov2Config", {"image_size": 224}),
        "BiT-50": ("BitConfig", {}),
        "SegFormer-B0": ("SegformerConfig", {}),
        "FocalNet-tiny": ("FocalNetConfig", {}),
        "SwiftFormer-XS": ("SwiftFormerConfig", {}),
    },
    "AudioClassification": {
        "Wav2Vec2-base": ("Wav2Vec2Config", {}),
        "HuBERT-base": ("HubertConfig", {}),
        "Whisper-tiny, its encoder": ("WhisperConfig", {}),
    },
}

_DECODERS = """
    Unet UnetPlusPlus Linknet FPN PSPNet PAN DeepLabV3 DeepLabV3Plus MAnet UPerNet Segformer
"""
_ENCODERS = """
    mobilenet_v2 efficientnet-b0 mit_b0 densenet121 vgg11_bn se_resnet50 dpn68 xception inceptionv4 timm-regnetx_002
"""
# "Unet, resnet18": decoder and encoder
SEGMENTATION = [f"{name}, resnet18" for name in _DECODERS.split()] + [f"Unet, {name}" for name in _ENCODERS.split()]
SEGMENTATION += ["DPT, tu-vit_tiny_patch16_224"]

_IN, _WIDTH, _OUT = 16, 64, 7
_Build = Callable[[Any], Any]  # from torch_geometric.nn to a network


def _of(layer: str, **options: Any) -> _Build:
    """Build a network of two layers of a kind, with a batch norm and ReLU between them, as the examples of the library do."""
    return lambda g: g.Sequential(
        "x, edge_index",
        [
            (getattr(g, layer)(_IN, _WIDTH, **options), "x, edge_index -> x"),
            g.BatchNorm(_WIDTH),
            _relu(),
            (getattr(g, layer)(_WIDTH, _OUT, **options), "x, edge_index -> x"),
        ],
    )


def _relu() -> Any:
    from torch import nn

    return nn.ReLU()


def _model(name: str, norm: str | None = "batch_norm", **options: Any) -> _Build:
    return lambda g: getattr(g, name)(_IN, _WIDTH, 3, _OUT, norm=norm, **options)


GRAPHS: dict[str, _Build] = {
    "GCN, no norm": _model("GCN", None),
    "GCN, batch norm": _model("GCN"),
    "GCN, layer norm": _model("GCN", "layer_norm"),
    "GCN, graph norm": _model("GCN", "graph_norm"),
    "GCN, pair norm": _model("GCN", "pair_norm"),
    "GraphSAGE, batch norm": _model("GraphSAGE"),
    "GIN, batch norm": _model("GIN"),
    "GAT, batch norm": _model("GAT", heads=4),
    "GATv2, batch norm": _model("GAT", heads=4, v2=True),
    "EdgeCNN, batch norm": _model("EdgeCNN"),
    "MLP, batch norm": lambda g: _of_nodes(g.MLP([_IN, _WIDTH, _WIDTH, _OUT])),
    "SGConv": _of("SGConv", K=2),
    "ChebConv": _of("ChebConv", K=3),
    "ARMAConv": _of("ARMAConv"),
    "TAGConv": _of("TAGConv"),
    "GraphConv": _of("GraphConv"),
    "TransformerConv": _of("TransformerConv"),
    "ResGatedGraphConv": _of("ResGatedGraphConv"),
    "FiLMConv": _of("FiLMConv"),
    "LEConv": _of("LEConv"),
    "ClusterGCNConv": _of("ClusterGCNConv"),
    "MFConv": _of("MFConv"),
    "SuperGATConv": _of("SuperGATConv"),
    "GENConv": _of("GENConv"),
    "GraphUNet": lambda g: g.GraphUNet(_IN, _WIDTH, _OUT, depth=2),
    "LINKX": lambda g: g.LINKX(24, _IN, _WIDTH, _OUT, num_layers=2),
}


def _of_nodes(network: Any) -> Any:
    """Let a network that looks at no edges be called with them."""
    from torch import nn

    class OfNodes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Any, edge_index: Any) -> Any:
            del edge_index
            return self.network(x)

    return OfNodes()


def installed(package: str) -> str | None:
    """Return the version of a package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def networks() -> dict[str, list[str]]:
    """Return library → the names of its networks, if it is installed."""
    names: dict[str, list[str]] = {
        "timm": list(TIMM),
        "transformers": [name for task in TRANSFORMERS.values() for name in task],
        "segmentation_models_pytorch": SEGMENTATION,
        "torch_geometric": list(GRAPHS),
    }
    if installed("torchvision"):
        import torchvision

        names["torchvision"] = [*torchvision.models.list_models(module=torchvision.models), *_SEGMENTING, *_VIDEOS]
    return {library: names[library] for library in LIBRARIES if installed(library)}


def build(library: str, name: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Return a network with random weights, in training mode, and what it is called with, by position and by name."""
    import torch

    torch.manual_seed(0)
    model, inputs, kwargs = _BUILDERS[library](name)
    return model.train(), inputs, kwargs


def _torchvision(name: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    import torch
    import torchvision

    options: _Options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}  # else it warns
    if name in _SEGMENTING:
        options = {"weights_backbone": None}
    return torchvision.models.get_model(name, **options), (torch.randn(SHAPES.get(name, IMAGE)),), {}


def _timm(name: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    import timm
    import torch

    model = timm.create_model(name)
    return model, (torch.randn(TIMM[name] or (2, *model.default_cfg["input_size"])),), {}


def _transformers(name: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    import torch
    import transformers

    task, (kind, options) = next((task, found[name]) for task, found in TRANSFORMERS.items() if name in found)
    config = getattr(transformers, kind)(**options)
    config._attn_implementation = "sdpa"
    make = getattr(transformers, f"AutoModelFor{task}")
    try:
        model = make.from_config(config)
    except ValueError:  # for some, sdpa is not written
        config._attn_implementation = "eager"
        model = make.from_config(config)
    if task == "ImageClassification":
        return model, (), {"pixel_values": torch.randn(LARGE)}
    if task == "AudioClassification":
        whisper = kind == "WhisperConfig"
        return model, (), {"input_features": torch.randn(2, 80, 3000)} if whisper else {"input_values": torch.randn(2, 8000)}
    tokens = torch.randint(2, min(config.vocab_size, 1000), TOKENS)
    kwargs: dict[str, Any] = {"input_ids": tokens}
    kwargs |= {} if task == "MaskedLM" else {"use_cache": False}
    return model, (), kwargs | ({"decoder_input_ids": tokens} if task == "Seq2SeqLM" else {})


def _segmentation(name: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    import segmentation_models_pytorch as smp
    import torch

    decoder, _, encoder = name.partition(", ")
    model = getattr(smp, decoder)(encoder, encoder_weights=None)
    return model, (torch.randn(LARGE if encoder.startswith("tu-vit") or decoder == "PAN" else IMAGE),), {}


def _graph(name: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    import torch
    import torch_geometric.nn

    model = GRAPHS[name](torch_geometric.nn)
    edges = torch.stack([torch.arange(24).repeat(3), torch.randint(24, (72,))])
    return model, (torch.randn(24, _IN), edges), {}


_BUILDERS: dict[str, Callable[[str], tuple[Any, tuple[Any, ...], dict[str, Any]]]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "transformers": _transformers,
    "segmentation_models_pytorch": _segmentation,
    "torch_geometric": _graph,
}
