"""Ask the prover about the networks people use, and write the page ``book/what-converts.md``.

    python -m tools.zoo                          write the page from the stored results
    python -m tools.zoo --check                  fail if the page is not what the results give
    python -m tools.zoo --run [--only NAME ...]  ask about every network, or these, store the results, write the page

The networks are torchvision's models for classification, and, where timm and transformers are installed, a choice of theirs;
none is downloaded, all have random weights. Each is asked about in a process of its own, within a limit of time, and one that
cannot be built, traced or finished is in the table as well, with the reason. Results of networks whose library is not installed
stay as they are.

Every yes is checked by numbers: with all eps negligible, in float64, f at 4 times the weights that convert is compared with f.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tools.address import ROOT

PAGE = ROOT / "book" / "what-converts.md"
RESULTS = ROOT / "book" / "results" / "what-converts.json"
LIMIT = 900  # seconds a network
TINY = 1e-30
AGREE = 1e-6  # f at both scales, in float64, relative

# Inputs are as small as a network takes. A transformer's position embedding belongs to one size: it keeps that.
IMAGE, LARGE, TOKENS = (4, 3, 64, 64), (2, 3, 224, 224), (2, 16)
SHAPES = {"inception_v3": (2, 3, 299, 299), "maxvit_t": LARGE, **dict.fromkeys(("vit_b_16", "vit_b_32", "vit_l_16"), LARGE)}
SHAPES |= dict.fromkeys(("vit_l_32", "vit_h_14"), LARGE)
_TIMM_SMALL = """
    resnet50d seresnet50 res2net50_26w_4s resnetv2_50 resnetv2_50x1_bit nf_resnet50 dm_nfnet_f0 cspresnet50 darknet53 dla34
    hrnet_w18_small repvgg_a0 mobilenetv4_conv_small efficientnet_b0 ghostnet_100 rexnet_100 xception41 ese_vovnet19b_dw
    convnext_atto convnextv2_atto inception_next_atto convmixer_768_32 edgenext_xx_small mambaout_femto
"""
_TIMM_LARGE = """
    deit_tiny_patch16_224 deit3_small_patch16_224 swin_tiny_patch4_window7_224 cait_xxs24_224 xcit_nano_12_p16_224 pvt_v2_b0
    poolformer_s12 mixer_s16_224 resmlp_12_224 gmlp_s16_224 levit_128s coatnet_nano_rw_224 efficientvit_b0 fastvit_t8
    tiny_vit_5m_224 focalnet_tiny_srf davit_tiny twins_svt_small eva02_tiny_patch14_224 beit_base_patch16_224
"""
TIMM = dict.fromkeys(_TIMM_SMALL.split(), IMAGE) | dict.fromkeys(_TIMM_LARGE.split(), LARGE)
# name → class of the configuration, what it says (else its defaults, which are those of the first network of that name)
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": ("GPT2Config", {}),
    "OPT-125M": ("OPTConfig", {}),
    "Pythia-70M": (
        "GPTNeoXConfig",
        {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 2048, "vocab_size": 50304},
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
    "BERT-base": ("BertConfig", {}),
    "RoBERTa-base": ("RobertaConfig", {}),
    "DistilBERT": ("DistilBertConfig", {}),
    "T5-small": ("T5Config", {}),
    "ViT-base": ("ViTConfig", {}),
}


def networks() -> dict[str, list[str]]:
    """Return library → the networks of it that this script asks about, if it is installed."""
    found: dict[str, list[str]] = {}
    if _version("torchvision"):
        import torchvision

        found["torchvision"] = torchvision.models.list_models(module=torchvision.models)
    for library, names in (("timm", list(TIMM)), ("transformers", list(TRANSFORMERS))):
        if _version(library):
            found[library] = names
    return found


def build(library: str, name: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Return a network with random weights, in training mode, and what it is called with."""
    import torch

    torch.manual_seed(0)
    if library == "torchvision":
        import torchvision

        options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}  # else it warns
        model = torchvision.models.get_model(name, **options)
        return model.train(), (torch.randn(SHAPES.get(name, IMAGE)),), {}
    if library == "timm":
        import timm

        return timm.create_model(name).train(), (torch.randn(TIMM[name]),), {}
    import transformers

    kind, options = TRANSFORMERS[name]
    config = getattr(transformers, kind)(**options)
    config._attn_implementation = "sdpa"
    if kind == "ViTConfig":
        model = getattr(transformers, "AutoModelForImageClassification").from_config(config)  # noqa: B009 - it has no types
        return model.train(), (), {"pixel_values": torch.randn(LARGE)}
    tokens = torch.randint(1, 1000, TOKENS)
    heads = {"BertConfig": "MaskedLM", "RobertaConfig": "MaskedLM", "DistilBertConfig": "MaskedLM", "T5Config": "Seq2SeqLM"}
    make = getattr(transformers, f"AutoModelFor{heads.get(kind, 'CausalLM')}")
    kwargs: dict[str, Any] = {"input_ids": tokens}
    kwargs |= {} if heads.get(kind) == "MaskedLM" else {"use_cache": False}
    kwargs |= {"decoder_input_ids": tokens} if kind == "T5Config" else {}
    return make.from_config(config).train(), (), kwargs


def ask(library: str, name: str) -> dict[str, Any]:
    """Return what the prover says of a network, how long it takes, and how far f moves in float64."""
    from explr import ExplrError, scale_invariance

    model, inputs, kwargs = build(library, name)
    first = next(iter((*inputs, *kwargs.values())))
    found: dict[str, Any] = {
        "input": list(first.shape),
        "weights": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
    }
    start = time.process_time()  # of one thread; the machine may have other work
    try:
        report = scale_invariance(model, *inputs, **kwargs)
    except ExplrError as error:
        return found | {"verdict": f"not analysed: {error}"}
    found |= {
        "seconds": round(time.process_time() - start, 1),
        "verdict": report.verdict,
        "share": report.share,
        "freeze": len(report.rest),
        "changes": {f"{factor:g}": float(f"{change:.3g}") for factor, change in report.changes.items()},
    }
    converts = {name for part in (report.alone, *report.joint) for name in part}
    return found | ({"error": float(f"{_error(model, converts, inputs, kwargs):.2g}")} if converts else {})


def _error(model: Any, converts: set[str], inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """Return ‖f(4θ) - f(θ)‖ / ‖f(θ)‖ in float64, with every eps negligible and no weights left at 0 or 1."""
    import torch
    from torch.utils._pytree import tree_leaves, tree_map_only

    def wide(x: Any) -> Any:
        return x.double() if x.is_floating_point() else x

    model.double()
    for module in model.modules():
        for eps in {"eps", "variance_epsilon"} & vars(module).keys():
            setattr(module, eps, TINY)
    inputs, kwargs = tree_map_only(torch.Tensor, wide, (inputs, kwargs))
    outputs = []
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2 or not parameter.any():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        for factor in (1.0, 4.0):
            for name, parameter in model.named_parameters():
                if name in converts:
                    parameter.mul_(factor)
            torch.manual_seed(1)
            leaves = tree_leaves(model(*inputs, **kwargs))
            outputs.append([x.flatten() for x in leaves if isinstance(x, torch.Tensor) and x.is_floating_point()])
    before, after = (torch.cat(parts) for parts in outputs)
    return float((after - before).norm() / before.norm())


def ask_apart(library: str, name: str) -> dict[str, Any]:
    """Ask in a process of its own, within the limit of time; say why, if nothing comes of it."""
    command = [sys.executable, "-W", "ignore", "-m", "tools.zoo", "--one", library, name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return {"verdict": f"not within {LIMIT} seconds"}
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"verdict": f"failed: {lines[-1] if lines else f'status {done.returncode}'}"}
    return json.loads(done.stdout.splitlines()[-1])


def run(only: list[str]) -> None:
    """Ask about networks and store what comes of it, after each one."""
    stored = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"provenance": {}, "networks": {}}
    for library, names in networks().items():
        kept = stored["networks"].setdefault(library, {})
        stored["networks"][library] = {name: kept[name] for name in names if name in kept}
        for name in names:
            if not only or name in only or library in only:
                stored["networks"][library][name] = ask_apart(library, name)
                stored["provenance"][library] = provenance(library)
                print(library, name, stored["networks"][library][name], flush=True)
                ordered = {name: stored["networks"][library][name] for name in names if name in stored["networks"][library]}
                stored["networks"][library] = ordered
                RESULTS.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


def provenance(library: str) -> dict[str, str]:
    """Return what the results on a library's networks were made with."""
    made = {package: _version(package) or "" for package in dict.fromkeys((library, "torch", "explr"))}
    return made | {"python": platform.python_version(), "machine": f"{platform.machine()} CPU, 1 thread"}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def page(stored: dict[str, Any]) -> str:
    """Return the page that the stored results give."""
    every = [result for results in stored["networks"].values() for result in results.values()]
    shares = sorted((result["share"] for result in every if "share" in result), reverse=True)
    checked = [result["error"] for result in every if "error" in result]
    held = sum(error < AGREE for error in checked)
    median = shares[len(shares) // 2]
    large = sum("eps is not negligible" in result["verdict"] for result in every)
    text = [
        "# What converts, in the networks people use",
        "",
        "How much of a network that was not built for the theorem can be trained without weight decay, by the exponential",
        "learning rate that is equivalent? `explr.scale_invariance` was asked about networks as their libraries build them,",
        "with random weights. *Converts* is the share of the trainable numbers that can be scaled together without a change",
        "in the output: the first of `report.parameter_groups(...)`. The *others* are tensors: freeze them, and the network",
        "is scale-invariant.",
        "",
        f"Of {len(every)} networks {len(shares)} were analysed. Half of these convert by {_percent(median)} or more,",
        f"{sum(share > 0.9 for share in shares)} by more than 90 %, {sum(share == 0 for share in shares)} not at all.",
        "Every yes was checked in float64 with all eps negligible: multiplying what converts by 4 changes the output by less",
        f"than {AGREE:g} in {held} of {len(checked)} cases.",
        "",
        "*× 4* and *× ¼* say by how much such scaling changes the output with the eps that the network has, in float32:",
        "what the eps of all its norms come to, on a small batch of noise. Weight decay shrinks weights that the exponential",
        "rate lets grow, so this is what keeps the two runs apart, unless eps follows the weights:",
        f"`ExpLR(..., model=model)` makes it follow. In {large} networks some eps is more than a tenth of the variance that it",
        "is added to, and the report says so.",
    ]
    for library, results in stored["networks"].items():
        if not results:
            continue
        made = stored["provenance"][library]
        words = ", ".join(f"{name} {made[name]}" for name in dict.fromkeys((library, "torch", "explr")) if made[name])
        text += ["", f"## {library}", "", f"{len(results)} networks; {words}, Python {made['python']}; {made['machine']}.", ""]
        text += ["| network | weights | converts | others | × 4 | × ¼ | checked | seconds |"]
        text += ["| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
        text += [_row(name, result) for name, result in results.items()]
    text += [
        "",
        "*Checked* is the change in float64; *exact* is equal to the last bit. *Seconds* are those that `scale_invariance`",
        "computes on one thread, most of them in `torch.export`. A dash means that nothing converts, or that the output is 0",
        "whatever the weights are. The results are made anew by `python -m tools.zoo --run`.",
    ]
    return "\n".join(text) + "\n"


def _row(name: str, result: dict[str, Any]) -> str:
    weights = f"{result['weights'] / 1e6:.1f} M" if "weights" in result else ""
    if "share" not in result:
        return f"| {name} | {weights} | {result['verdict'].replace('|', ' ')[:160]} | | | | | |"
    changes = [_change(result["changes"].get(factor)) for factor in ("4", "0.25")]
    error = f"{result['error']:.0e}" if result.get("error") else "exact" if "error" in result else "–"
    cells = [name, weights, _percent(result["share"]), str(result["freeze"]), *changes, error]
    return f"| {' | '.join([*cells, str(result['seconds'])])} |"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share else "nothing"


def _change(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if value >= 1e-3 else "< 0.1 %"


def main() -> int:
    """Run the command line; return 1 where --check finds another page than the results give."""
    parser = argparse.ArgumentParser(description="Ask the prover about the networks people use.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the page is not what the results give")
    parser.add_argument("--run", action="store_true", help="ask first, and store what comes of it")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="networks or libraries to ask about")
    parser.add_argument("--one", nargs=2, metavar=("LIBRARY", "NAME"), help="print the result on one network, as JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(ask(*options.one)))
        return 0
    if options.run:
        run(options.only)
    made = page(json.loads(RESULTS.read_text(encoding="utf-8")))
    if not options.check:
        PAGE.write_text(made, encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != made:
        print(f"{PAGE.relative_to(ROOT)} is out of date: run python -m tools.zoo")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
