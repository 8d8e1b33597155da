"""What a drawing says is what was computed: degrees of a report, lengths of a step."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from explr import ExplrError, models, scale_invariance
from explr.book import drawings
from explr.book.style import COLOURS

matplotlib.use("agg")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def take_raw_stream(block):
    def forward(stream):
        inner = F.relu(block.norm2(block.conv1(F.relu(block.norm1(stream)))))
        return block.shortcut(stream) + block.conv2(inner)

    block.forward = forward


def report_of(raw=False, **options):
    model = models.preresnet(depth=8, width=4, **options)
    if raw:
        for block in model.blocks[1:]:
            take_raw_stream(block)
    return scale_invariance(model, torch.randn(4, 3, 32, 32))


@pytest.fixture(scope="module")
def reports():
    return {"normal": report_of(), "raw": report_of(raw=True)}


def degrees(axes):
    """Return the numbers on the edges: along the branch, along the shortcut, after the sum."""
    tokens = [(text.get_position(), text.get_text()) for text in axes.texts if text.get_bbox_patch() is not None]
    below = [word for _, word in sorted(token for token in tokens if token[0][1] == 0.0)]
    return below[:-1], [word for _, word in sorted(token for token in tokens if token[0][1] > 0.0)], below[-1]


def in_red(axes):
    """Return everything drawn in the colour of a clash: words, and the number of lines."""
    red = COLOURS["exponential"]
    words = {text.get_text() for text in axes.texts if text.get_color() == red}
    words |= {t.get_text() for t in axes.texts if t.get_bbox_patch() and t.get_bbox_patch().get_facecolor()[:3] == rgb(red)}
    return words, sum(line.get_color() == red for line in axes.lines)


def rgb(colour):
    return matplotlib.colors.to_rgb(colour)


def test_a_block_is_drawn_with_the_degrees_of_its_report(reports):
    figure = drawings.residual_blocks(reports, "blocks.1", raw=["raw"])
    assert plt.get_fignums() == []
    normal, raw = figure.axes
    assert degrees(normal) == (["1", "0", "0", "1", "0", "0", "1"], ["0", "1"], "1")
    assert degrees(raw) == (["1", "0", "0", "1", "0", "0", "1"], ["1", "2"], "none")
    last = drawings.residual_blocks({"raw": reports["raw"]}, "blocks.2", raw=["raw"]).axes[0]
    assert degrees(last) == (["2", "0", "0", "1", "0", "0", "1"], ["2", "3"], "none")


def test_a_block_with_trained_norms_is_drawn_with_other_degrees():
    (axes,) = drawings.residual_blocks({"affine": report_of(affine=True)}, "blocks.1").axes
    assert degrees(axes)[0][:4] == ["1", "1", "1", "2"]


def test_a_clash_is_marked_by_colour_by_shape_and_in_words(reports):
    normal, raw = drawings.residual_blocks(reports, "blocks.1", raw=["raw"]).axes
    assert in_red(normal) == (set(), 0)
    words, lines = in_red(raw)
    assert words == {"2 meets 1", "2", "1", "none"} and lines == 4  # two edges in, the sum, one out
    signs = [{text.get_text() for text in axes.texts} & {"+", "≠"} for axes in (normal, raw)]
    assert signs == [{"+"}, {"≠"}]
    assert [axes.lines[-1].get_marker() for axes in (normal, raw)] == ["o", "8"]


def test_the_shortcut_starts_where_it_takes_its_input(reports):
    normal, raw = drawings.residual_blocks(reports, "blocks.1", raw=["raw"]).axes
    boxes = [text.get_position()[0] for text in normal.texts if text.get_text() in ("norm", "ReLU")]
    fork_of = [next(line.get_xdata()[0] for line in axes.lines if line.get_markersize() == 5) for axes in (normal, raw)]
    assert fork_of[1] < boxes[0] < boxes[1] < fork_of[0] < boxes[2]


@pytest.mark.parametrize("path", ["blocks.0", "stem", "blocks.7"])
def test_a_block_of_another_kind_is_refused(path, reports):
    with pytest.raises(ExplrError, match=f"'{path}' is no pre-activation block with a convolution on its shortcut"):
        drawings.residual_blocks(reports, path)


def test_the_triangle_has_the_lengths_of_the_step():
    theta, step = 1.2 * np.array([np.cos(0.6), np.sin(0.6)]), 0.5 * np.array([np.sin(0.6), -np.cos(0.6)])
    (axes,) = drawings.lemma_triangle(theta, step).axes
    assert plt.get_fignums() == []
    said = [text.get_text() for text in axes.texts if "=" in text.get_text()]
    assert said == ["‖θₜ‖ = 1.2", "η‖∇L(θₜ)‖ = 0.5", "‖θₜ₊₁‖ = 1.3"]
    ends = {line.get_label(): np.array(line.get_data())[:, -1] for line in axes.lines}
    np.testing.assert_allclose(ends["‖θₜ₊₁‖"], theta + step)
    np.testing.assert_allclose(ends["η‖∇L(θₜ)‖"], theta + step)
    square = np.array(next(line for line in axes.lines if line.get_label() == "right angle").get_data()).T
    assert abs((square[1] - square[0]) @ (square[2] - square[1])) < 1e-12


def test_no_right_angle_is_drawn_where_there_is_none():
    with pytest.raises(ExplrError, match=r"cosine of 0\.1"):
        drawings.lemma_triangle([1.0, 0.0], [0.1, 1.0])
