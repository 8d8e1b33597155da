"""The page on the networks people use is what the stored results give, and a result is what the network gives."""

import json

import pytest
import torch
import torchvision
from torch import nn

from tools import zoo

STORED = json.loads(zoo.RESULTS.read_text(encoding="utf-8"))
RESULTS = [(library, name) for library, results in STORED["networks"].items() for name in results]


def test_the_page_is_what_the_results_give():
    assert zoo.PAGE.read_text(encoding="utf-8") == zoo.page(STORED), "run python -m tools.zoo"


def test_every_network_of_torchvision_for_classification_is_there_and_says_how_it_was_made():
    assert set(torchvision.models.list_models(module=torchvision.models)) <= set(STORED["networks"]["torchvision"])
    for library in (library for library, results in STORED["networks"].items() if results):
        made = STORED["provenance"][library]
        assert made[library] and made["torch"] and made["python"]


def test_every_yes_holds_by_numbers():
    found = {key: STORED["networks"][key[0]][key[1]] for key in RESULTS}
    assert [key for key, result in found.items() if result.get("share") and not result["error"] < zoo.AGREE] == []
    assert sum("share" in result for result in found.values()) > 0.9 * len(found)


def test_a_result_is_what_the_network_gives():
    again, stored = zoo.ask("torchvision", "resnet18"), STORED["networks"]["torchvision"]["resnet18"]
    assert {k: again[k] for k in ("weights", "share", "freeze", "verdict", "input")} == {
        k: stored[k] for k in ("weights", "share", "freeze", "verdict", "input")
    }
    assert again["error"] < zoo.AGREE


def test_the_check_by_numbers_sees_a_false_yes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8, eps=0.1), nn.Linear(8, 2))
    x = torch.randn(16, 4)
    assert zoo._error(model, {"0.weight", "0.bias"}, (x,), {}) < 1e-12  # its eps is made negligible
    assert zoo._error(model, {"0.weight", "0.bias", "2.weight"}, (x,), {}) > 0.1
    assert zoo._error(model, {"0.weight"}, (x,), {}) > 0.01


class InCode(nn.Module):
    """Has its eps in the code, and a product that is not written for float64."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 4))

    def forward(self, x):
        if x.dtype == torch.float64:
            raise RuntimeError("not written for Double")
        return nn.functional.layer_norm(nn.functional.linear(x, self.weight), (8,), eps=0.1)


def test_an_eps_in_the_code_is_negligible_too_and_float32_does_where_float64_does_not_run():
    assert zoo._error(InCode(), {"weight"}, (torch.randn(16, 4),), {}) < zoo.AGREE


@pytest.mark.parametrize(
    "code, verdict",
    [
        ("import sys; sys.exit('no such network')", "failed: no such network"),
        ("import time; time.sleep(60)", "not within 1 seconds"),
    ],
)
def test_a_network_that_comes_to_nothing_is_in_the_table_with_the_reason(code, verdict, monkeypatch):
    run = zoo.subprocess.run
    monkeypatch.setattr(zoo, "LIMIT", 1)
    monkeypatch.setattr(zoo.subprocess, "run", lambda command, **options: run([command[0], "-c", code], **options))
    result = zoo.ask_apart("torchvision", "resnet18")
    assert result == {"verdict": verdict} and verdict in zoo._row("resnet18", result)


def test_networks_that_have_a_result_need_not_be_asked_again(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(zoo, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(zoo, "networks", lambda: {"torchvision": ["a", "b"]})
    monkeypatch.setattr(zoo, "ask_apart", lambda library, name: asked.append(name) or {"verdict": "asked"})
    zoo.run(["b"], missing=False)
    zoo.run([], missing=True)
    zoo.run([], missing=True)
    assert asked == ["b", "a"]
    stored = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert list(stored["networks"]["torchvision"]) == ["a", "b"]
