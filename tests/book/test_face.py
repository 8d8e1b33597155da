"""The first figure says what the records say: in its curves, its numbers, its words, and in the picture of it."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from explr import ExplrError, Run, RunConfig
from explr.book.face import caption, card, climb, face
from tools import face as tool

LN10 = float(np.log(10.0))


def run(decades, accuracy, **config):
    return Run(
        config=RunConfig(epochs=len(decades), model="preresnet", model_args={"depth": 8}, weight_decay=0.0075, **config),
        history={
            "log_lr": [LN10 * value for value in decades],
            "train_accuracy": list(accuracy),
            "test_accuracy": [value / 2 for value in accuracy],
        },
        weight_norms={"w": [1.0] * len(decades)},
        provenance={"data": "grey <gratings>", "device": "an abacus"},
    )


DECAY, GROWING = run([-1, -1, -2], [0.2, 0.3, 0.4]), run([-1, 4.5, 9], [0.2, 0.31, 0.39], regime="exponential")


def test_the_numbers_are_those_of_the_records():
    page = face(DECAY, GROWING)
    numbers = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page)[1])
    assert numbers["rates"] == [[-1, -1, -2], [-1, 4.5, 9]]
    assert numbers["training"] == [[20, 30, 40], [20, 31, 39]] and numbers["test"] == [[10, 15, 20], [10, 15.5, 19.5]]
    assert re.findall(r"<td data-key=\w+ data-run=\d>(.*?)</td>", page) == [  # of the last epoch, where it begins
        "1.0 · 10<sup>−2</sup>",
        "1.0 · 10<sup>9</sup>",
        "40.0 %",
        "39.0 %",
        "20.0 %",
        "19.5 %",
    ]


def test_a_number_that_rounds_to_ten_is_one_of_the_next_power():
    page = face(DECAY, run([-1, 4.5, 8.999], [0.2, 0.31, 0.39], regime="exponential"))
    assert "<td data-key=rates data-run=1>1.0 · 10<sup>9</sup></td>" in page


def test_the_curves_are_those_of_the_records():
    page = face(DECAY, GROWING)
    numbers = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page)[1])
    drawn = [[float(point.split()[1]) for point in path.split("L")] for path in re.findall(r'd="M(.*?)"', page)]
    assert drawn[:2] == drawn[2:4] and drawn[4:6] == drawn[6:]  # what is past lies over all of it
    for curves, values, low, high in (
        (drawn[:2], numbers["rates"], numbers["low"], numbers["high"]),
        (drawn[4:6], numbers["training"], 0, numbers["top"]),
    ):
        for curve, shown in zip(curves, values, strict=True):
            np.testing.assert_allclose(100 * (high - np.array(shown)) / (high - low), curve, atol=0.01)
        assert all(0 <= height <= 100 for curve in curves for height in curve)


def test_the_words_are_those_of_the_records():
    assert climb(GROWING) == pytest.approx(10) and "climbs through 10 powers of ten" in face(DECAY, GROWING)
    assert "grey &lt;gratings&gt;" in face(DECAY, GROWING) and "an abacus" in face(DECAY, GROWING)
    said = caption(DECAY)
    full = replace(DECAY, config=RunConfig())
    assert caption(full).startswith("At full scale: preresnet32")
    assert all(
        word in said
        for word in ("In miniature: preresnet (depth 8), constant", "weight decay 0.0075", "3 epochs", "float32", "seed 0")
    )


def test_a_figure_needs_no_other_file():
    assert not re.search(r"https?://|url\(|src=|href=", face(DECAY, GROWING))


@pytest.mark.parametrize("other", [run([-1, 1], [0.1, 0.2]), run([-1], [0.1])])
def test_runs_of_different_lengths_are_refused(other):
    with pytest.raises(ExplrError, match="same length, at least 2 epochs"):
        face(DECAY if other.config.epochs > 1 else other, other)


def test_the_card_draws_the_same_curves_at_the_size_of_previews():
    figure = card(DECAY, GROWING)
    rates, accuracies = figure.axes
    assert [list(line.get_ydata()) for line in rates.lines] == [[-1, -1, -2], [-1, pytest.approx(4.5), pytest.approx(9)]]
    assert [list(line.get_ydata()) for line in accuracies.lines] == [[20, 30, 40], [20, 31, 39]]
    assert list(figure.get_size_inches() * figure.dpi) == [1200, 630]
    assert "10 powers of ten" in figure.get_suptitle()


# ---- the figure that stands on the first page


def test_the_first_page_shows_what_the_records_give():
    page = face(*tool.chosen(tool.pairs()))
    assert tool.out_of_step(page) == [], "run python -m tools.face"
    assert "_static/face.html" in (tool.ROOT / "book" / "intro.md").read_text(encoding="utf-8")
    assert Image.open(tool.PICTURE).size == (1200, 630)


def test_other_records_would_be_noticed(tmp_path, monkeypatch):
    decay, exponential = tool.chosen(tool.pairs())
    exponential.history["train_accuracy"][-1] += 0.01
    assert tool.out_of_step(face(decay, exponential)) == ["face.html", "preview.png"]
    monkeypatch.setattr(tool, "PAGE", tmp_path / "face.html")
    monkeypatch.setattr(tool, "PICTURE", tmp_path / "preview.png")
    assert tool.out_of_step("") == ["face.html", "preview.png"]


def test_the_pair_that_climbs_farther_is_shown():
    far = run([-1, 30], [0.1, 0.2])
    assert tool.chosen([(DECAY, GROWING), (DECAY, far)])[1] is far and tool.chosen([(DECAY, far), (DECAY, GROWING)])[1] is far


def test_the_stored_pair_is_what_the_tool_trains():
    decay, exponential = tool.pairs()[0]
    assert decay.config == tool.DECAY and exponential.config == replace(tool.DECAY, regime="exponential")
    assert climb(exponential) > 15
    assert np.abs(np.subtract(*(run.history["train_accuracy"] for run in (decay, exponential)))).max() < 0.05
