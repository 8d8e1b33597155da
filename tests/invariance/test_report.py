"""What the report says is true: of eps, of what to freeze, of how far to trust it; and it fits on a screen."""

import math
from functools import partial

import pytest
import torch
import torchvision
from bs4 import BeautifulSoup
from torch import nn
from torch.export.graph_signature import ExportGraphSignature
from torch.func import functional_call

from explr import ExpLR, lemma1, models
from explr.invariance import Verification, scale_invariance, verify
from explr.invariance.subsets import components

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")

IMAGES = (4, 3, 32, 32)


def change(model, factor, names, *inputs):
    """‖f(cθ) - f(θ)‖ / ‖f(θ)‖ with the named parameters scaled."""
    outputs = []
    for c in (1.0, factor):
        weights = {name: c * p.detach() if name in names else p.detach() for name, p in model.named_parameters()}
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        torch.manual_seed(1)
        with torch.no_grad():
            outputs.append(functional_call(model, {**weights, **buffers}, inputs))
    return float((outputs[1] - outputs[0]).norm() / outputs[0].norm())


# ---- one policy for eps


class ByHand(nn.Module):
    def __init__(self, eps):
        super().__init__()
        self.eps_of_mine = eps

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps_of_mine)


NORMS = {
    "module": lambda eps: nn.RMSNorm(64, eps=eps, elementwise_affine=False),
    "function": lambda eps: Function(lambda x: nn.functional.layer_norm(x, (64,), eps=eps)),
    "by hand": ByHand,
}


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def with_norm(norm, eps):
    torch.manual_seed(0)
    first = nn.Linear(16, 64, bias=False)
    nn.init.normal_(first.weight, std=5e-4)  # variance of its output: 4e-6
    return nn.Sequential(first, NORMS[norm](eps), nn.ReLU(), nn.Linear(64, 3).requires_grad_(False))


@pytest.mark.parametrize("norm", NORMS)
def test_an_eps_that_is_not_negligible_is_in_the_verdict_whoever_wrote_the_norm(norm):
    model, x = with_norm(norm, 8e-4), torch.randn(32, 16)
    report = scale_invariance(model, x)
    assert change(model, 4.0, {"0.weight"}, x) > 0.5
    assert not report.invariant and report.degree is None
    assert report.verdict == f"not scale-invariant: an eps is not negligible ({report.obstructions[0].path})"
    (found,) = report.obstructions
    assert found.kind == "large eps" and found.degrees[0] in (1, 2) and found.parameters == ("0.weight",)
    assert "0.0008 is 2" in str(found) and "use a smaller eps" in str(found)  # some 200 times


@pytest.mark.parametrize("norm", NORMS)
def test_an_eps_that_is_negligible_is_said_to_be_there_whoever_wrote_the_norm(norm):
    report = scale_invariance(with_norm(norm, 1e-9), torch.randn(32, 16))
    assert report.invariant and report.verdict == "scale-invariant, up to the eps of its norms"


def test_a_large_eps_that_can_follow_the_weights_does_not_keep_them_from_converting():
    model, x = with_norm("module", 8e-4), torch.randn(32, 16)
    report = scale_invariance(model, x)
    (group,) = report.parameter_groups(lr=0.1, weight_decay=5e-4)
    assert group["scale_invariant"] and report.share == 1.0
    assert "ExpLR(..., model=model)" in report.table().splitlines()[1]
    ExpLR(torch.optim.SGD([group]), model=model)


def test_the_eps_of_a_norm_of_what_does_not_scale_is_no_matter():
    frozen = nn.Linear(16, 64).requires_grad_(False)
    norms = [nn.LayerNorm(size, eps=eps, elementwise_affine=False) for size, eps in ((64, 1.0), (8, 1e-5))]
    model = nn.Sequential(frozen, norms[0], nn.Linear(64, 8, bias=False), norms[1])
    report = scale_invariance(model, torch.randn(32, 16))
    assert report.invariant and report.norms["1"].relative_eps > 1


# ---- what depth makes of it


@pytest.mark.parametrize("build", [models.preresnet, partial(models.resnet, frozen_head=False, affine=True)])
def test_the_change_at_scale_is_what_scaling_does(build):
    torch.manual_seed(0)
    model, x = build(8, 4).double(), torch.randn(IMAGES, dtype=torch.float64)
    for norm in model.modules():
        norm.eps = 1e-2 if hasattr(norm, "eps") else None
    report = scale_invariance(model, x)
    converts = {name for part in [report.alone, *report.joint] for name in part}
    assert report.changes.keys() == {4.0, 0.25}
    for factor, measured in report.changes.items():
        assert measured == pytest.approx(change(model, factor, converts, x), rel=1e-9)
        assert f"{measured:.1e} at c = {factor:g}" in report.table() and f"{measured:.1e}" in report._repr_html_()


def test_the_change_at_scale_shows_what_no_median_does():
    torch.manual_seed(0)
    report = scale_invariance(torchvision.models.mobilenet_v2(), torch.randn(2, 3, 64, 64))
    largest = max(norm.relative_eps for norm in report.norms.values())
    # In one norm, c = 4 takes 15/16 of the eps away, which is half as much of a standard deviation.
    assert report.changes[4.0] > 3 * 15 / 16 * largest / 2, (report.changes, largest)


def test_nothing_is_measured_where_nothing_can_be_seen():
    zero = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    nn.init.zeros_(zero[2].weight)
    nn.init.zeros_(zero[2].bias)
    for model in (zero, nn.Sequential(nn.Linear(4, 8), nn.Tanh())):
        report = scale_invariance(model, torch.randn(5, 4))
        assert report.changes == {} and "Measured" not in report.table()


# ---- whether numbers were asked


class Reader(nn.Linear):
    """Cannot be copied: its parameters are read through a function that knows the original."""

    def __init__(self):
        super().__init__(16, 64, bias=False)
        self.read = lambda: self.weight

    def forward(self, x):
        return nn.functional.linear(x, self.read())


NORM = partial(nn.LayerNorm, 64, elementwise_affine=False)
UNVERIFIED = {
    "verify=False": (lambda: nn.Sequential(nn.Linear(16, 64), NORM()), {"verify": False}),
    "a copy of 1,088 parameters, more than 1,000, may not fit into memory": (
        lambda: nn.Sequential(nn.Linear(16, 64), NORM()), {},
    ),
    "a copy of the network uses parameters of the original": (lambda: nn.Sequential(Reader(), NORM()), {}),
}  # fmt: skip


@pytest.mark.parametrize("reason", UNVERIFIED)
def test_a_proof_that_was_not_held_against_numbers_says_so_and_why(reason, monkeypatch):
    build, options = UNVERIFIED[reason]
    monkeypatch.setattr(verify, "LARGEST", 1000 if "1,000" in reason else verify.LARGEST)
    report = scale_invariance(build(), torch.randn(8, 16), **options)
    line = f"Not verified by numbers: {reason}. The proof is by the rules alone."
    assert report.invariant and not report.verified and report.verification == Verification(reason=reason)
    assert line in report.table().splitlines() and line in BeautifulSoup(report._repr_html_(), "html.parser").text


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_proof_that_was_held_against_numbers_says_how_far_they_agree(dtype):
    torch.manual_seed(0)
    report = scale_invariance(nn.Sequential(nn.Linear(16, 64), NORM()).to(dtype), torch.randn(8, 16, dtype=dtype))
    seen = f"the output changes by {report.verification.change:.1e} at c = 64 or less"
    line = f"Verified in float64, with each eps scaled along: {seen}."
    assert report.verified and 0.0 <= report.verification.change < 1e-6
    assert line in report.table().splitlines() and line in BeautifulSoup(report._repr_html_(), "html.parser").text


def test_a_network_whose_code_says_its_precision_is_verified_in_that():
    model = nn.Sequential(nn.Linear(16, 64), NORM())
    model[0].register_forward_hook(lambda module, inputs, output: output.float() @ torch.eye(64, dtype=torch.float32))
    assert "Verified in float64" in scale_invariance(model, torch.randn(8, 16)).table()
    model[0].register_forward_pre_hook(lambda module, inputs: inputs[0].float())
    assert "Verified in the precision of the network" in scale_invariance(model, torch.randn(8, 16)).table()


def test_where_nothing_converts_nothing_is_said_of_numbers():
    report = scale_invariance(nn.Sequential(nn.Linear(4, 8), nn.Tanh()), torch.randn(5, 4))
    assert not report.verified and report.verification.reason == "nothing converts"
    assert "erified" not in report.table()


# ---- advice that works


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "convnext_tiny", "vit_b_16"])
def test_to_freeze_the_rest_always_works(name):
    options = {"image_size": 32} if name == "vit_b_16" else {}
    model = torchvision.models.get_model(name, num_classes=10, **options)
    x = torch.randn(2, 3, *[options.get("image_size", 64)] * 2)
    report = scale_invariance(model, x)
    advice = report.table().splitlines()[1]
    assert f"{report.share:.1%} of the weights convert as they are" in advice
    assert f"freeze these {len(report.rest)} tensors (report.rest: {report.rest[0]}" in advice
    for parameter in report.rest:
        model.get_parameter(parameter).requires_grad_(False)
    assert scale_invariance(model, x).invariant


def test_advice_says_so_where_there_is_none():
    assert "No weight converts" in scale_invariance(nn.Sequential(nn.Linear(4, 8), nn.Tanh()), torch.randn(5, 4)).advice[0]


def test_nobody_is_told_to_freeze_all_that_trains():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    (*_, at_the_output) = scale_invariance(net, torch.randn(5, 4)).obstructions
    assert (at_the_output.kind, at_the_output.remedy.startswith("No norm follows")) == ("output", True)
    net.insert(1, nn.LayerNorm(8))
    (*_, at_the_output) = scale_invariance(net, torch.randn(5, 4)).obstructions
    assert at_the_output.remedy == "Freeze what follows the last norm: 1.weight, 1.bias, 3.weight and 1 more."


# ---- arguments by name


class Hugging(nn.Module):
    """Called as networks of Hugging Face's are."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8, elementwise_affine=False)

    def forward(self, input_ids=None, mask=None, use_cache=True):
        if use_cache:
            raise RuntimeError("the cache cannot be traced")
        return {"logits": self.norm(self.words(input_ids)) * mask[..., None]}


def test_arguments_may_be_given_by_name_in_any_order():
    ids, mask = torch.randint(11, (2, 5)), torch.ones(2, 5)
    for kwargs in ({"use_cache": False, "input_ids": ids, "mask": mask}, {"mask": mask, "input_ids": ids, "use_cache": False}):
        report = scale_invariance(Hugging(), **kwargs)
        assert report.invariant and 0 < report.norms["norm"].relative_eps < 1e-3
    assert scale_invariance(Hugging(), ids, mask=mask, use_cache=False).invariant


def test_an_error_names_what_was_given_by_name():
    with pytest.raises(ValueError, match=r"does not run on example inputs \(2, 5\), mask=\(2, 5\), use_cache=bool: the cache"):
        scale_invariance(Hugging(), torch.zeros(2, 5).long(), mask=torch.ones(2, 5), use_cache=True)


# ---- length


@pytest.fixture(scope="module")
def long_reports():
    torch.manual_seed(0)
    vit = torchvision.models.vit_b_16(image_size=32)
    return {
        "resnet50": scale_invariance(torchvision.models.resnet50(), torch.randn(2, 3, 64, 64)),
        "vit": scale_invariance(vit, torch.randn(2, 3, 32, 32)),
    }


@pytest.mark.parametrize("name, operations", [("resnet50", 175), ("vit", 122)])
def test_the_report_on_a_large_network_is_a_screenful_and_the_rest_on_demand(name, operations, long_reports):
    report = long_reports[name]
    short, full = report.table().splitlines(), report.table(full=True).splitlines()
    assert len(short) <= 40 and len(full) > operations and len(report.rows) >= operations
    assert [line for line in full if line.startswith("- ")] == [f"- {obstruction}" for obstruction in report.obstructions]
    assert all(parameter in full[-1] for parameter in report.rest)


def test_obstructions_that_are_alike_are_one_line_that_says_where(long_reports):
    report = long_reports["vit"]
    lines = [line for line in report.table().splitlines() if line.startswith("- ")]
    assert len(lines) < 10 < len(report.obstructions)
    (gelu,) = (line for line in lines if "gelu" in line)
    assert "Likewise 11 more, in GELU: encoder.layers.encoder_layer_1.mlp.1, encoder.layers.encoder_layer_2.mlp.1" in gelu
    assert any("layer1.0.conv1 (1 of 52)" in line for line in long_reports["resnet50"].table().splitlines())


def test_a_page_folds_all_of_a_large_network_away(long_reports):
    page = BeautifulSoup(long_reports["resnet50"]._repr_html_(), "html.parser")
    (details,) = page.find_all("details")
    assert "open" not in details.attrs and "175" in details.summary.text
    assert len(details.find_all("tr")) > 175
    outside = [row for row in page.find_all("tr") if details not in row.parents]
    assert len(outside) < 20
    assert all(table.parent["tabindex"] == "0" for table in page.find_all("table"))  # a box that scrolls can be reached


def parsed(report):
    return BeautifulSoup(report._repr_html_(), "html.parser")


def test_a_page_folds_a_tall_table_and_shows_a_short_one():
    """Thirteen operations are a table, twenty-nine are more than one wants to scroll past."""
    short, tall = (parsed(scale_invariance(m, torch.randn(IMAGES))) for m in (models.convnet(3, 4), models.preresnet(8, 4)))
    assert not short.find_all("details") and len(short.find_all("table")) == 2
    (folded,) = tall.find_all("details")
    assert folded.summary.text == "Degrees of homogeneity: 29 rows" and len(folded.find_all("tr")) == 30
    assert [table.caption.text for table in tall.find_all("table") if folded not in table.parents] == [
        "Norms: invariant up to eps"
    ]


def test_a_page_on_lemma_1_says_the_numbers_of_all_parameters_above_the_fold():
    torch.manual_seed(0)
    model, labels = models.preresnet(20, 4).double(), torch.randint(10, (4,))
    report = lemma1(model, nn.functional.cross_entropy, torch.randn(IMAGES, dtype=torch.float64), labels)
    page = parsed(report)
    (folded,) = page.find_all("details")
    assert len(folded.find_all("tr")) == len(report.rows) + 2
    shown = "".join(p.text for p in page.find_all("p") if folded not in p.parents)
    assert f"cosine {report.cosine:+.1e}, gradient error {report.gradient_error:.1e}" in shown
    assert [cell.text for cell in folded.find("tr").find_all("th")] == ["parameter", "cosine", "gradient error"]  # no notes


# ---- time


def test_what_is_read_of_a_graph_is_read_once(monkeypatch):
    """Torch builds these tables anew at each access; to ask for one at each node took a second for resnet152."""
    read = []
    original = ExportGraphSignature.inputs_to_parameters.fget
    monkeypatch.setattr(ExportGraphSignature, "inputs_to_parameters", property(lambda s: read.append(1) or original(s)))
    scale_invariance(models.preresnet(20, 4), torch.randn(IMAGES))
    assert len(read) < 30


def test_components_are_those_of_the_graph_of_conditions():
    names = {f"n{i}" for i in range(60)}
    generator = torch.Generator().manual_seed(0)
    pairs = [[f"n{int(i)}" for i in torch.randint(60, (2,), generator=generator)] for _ in range(40)]
    conditions = [dict.fromkeys([*pair, "absent"], 1) for pair in pairs]
    parts = components(conditions, names)
    assert sorted(name for part in parts for name in part) == sorted(names)
    home = {name: index for index, part in enumerate(parts) for name in part}
    assert all(home[a] == home[b] for a, b in pairs)
    linked = len(set(map(frozenset, pairs)))
    assert len(parts) >= len(names) - linked and math.isclose(len(parts), len(set(home.values())))
