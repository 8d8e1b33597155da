import base64
import re

import matplotlib.pyplot as plt
import pytest

from explr import ExplrError
from explr.book.widgets import Player, explore


def figure(height):
    drawn, axes = plt.subplots(figsize=(2, 1))
    axes.plot([0, 1], [0, height])
    return drawn


def player(**options):
    return Player("height <h>", ["1", "2"], map(figure, (1, 2)), ["low", 'a "high" line'], caption="Two lines.", **options)


def test_player_is_self_contained_deterministic_html():
    page = player()._repr_html_()
    assert page == player()._repr_html_()
    assert not re.search(r"https?://", re.sub(r"base64,[^\"]*", "", page))
    sources = re.findall(r'src="data:image/svg\+xml;base64,([^"]*)"', page)
    assert [b"</svg>" in base64.b64decode(source) for source in sources] == [True, True] and sources[0] != sources[1]


def test_player_describes_every_frame_and_shows_the_first():
    page = player(start=1)._repr_html_()
    assert re.findall(r'alt="([^"]*)"', page) == ["low", "a &quot;high&quot; line"]
    assert [" hidden>" in image for image in re.findall(r"<img[^>]*>", page)] == [True, False]
    assert "<output>2</output>" in page and "height &lt;h&gt;" in page and "<figcaption>Two lines.</figcaption>" in page


def test_player_closes_its_figures():
    before = plt.get_fignums()
    player()
    assert plt.get_fignums() == before


@pytest.mark.parametrize("change", [{"values": ["1"]}, {"alts": []}, {"start": 2}])
def test_player_refuses_frames_that_do_not_match(change):
    arguments = {"values": ["1", "2"], "figures": map(figure, (1, 2)), "alts": ["a", "b"], **change}
    with pytest.raises(ExplrError, match="as many values"):
        Player("x", **arguments)


def test_explore_draws_a_still_on_a_static_page(monkeypatch):
    monkeypatch.setenv("EXPLR_STATIC", "1")
    drawn = explore(lambda lr, name: (lr, name), lr=(0.0, 1.0, 0.25), name=["a", "b"])
    assert drawn == (0.25, "a")


def test_explore_gives_live_controls_with_a_kernel(monkeypatch):
    monkeypatch.delenv("EXPLR_STATIC", raising=False)
    seen = []

    def draw(lr, name):
        seen.append((lr, name))
        raise ExplrError("beyond the bound")  # shown as text, not raised

    box = explore(draw, lr=(0.0, 1.0, 0.25), name=["a", "b"])
    box.children[0].value = 0.5
    assert seen == [(0.25, "a"), (0.5, "a")]
