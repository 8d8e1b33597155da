"""Figures that move: a player that works on a page without a kernel, and live controls where there is one.

:class:`Player` is a row of pictures over a slider, all of it in the page: it needs no kernel, no network, no widget library.
:func:`explore` gives ipywidgets sliders over any function that draws; where no kernel will answer it shows a still instead.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeGuard

from explr.errors import ExplrError, needs

with needs("figures"):
    import matplotlib.pyplot as plt
    from matplotlib.figure import Figure


class Player:
    """A figure with a slider: one frame for each value of a parameter.

    The frames are SVG pictures inside the HTML; a few lines of script show the one that the slider says. The same frames give
    the same bytes. Without script the first frame shows.

    Args:
        label: what the slider changes, with its unit, for example "weight decay λ".
        values: the value of each frame as shown beside the slider.
        figures: one matplotlib figure a frame; closed when they have been drawn.
        alts: what is to be seen in each frame, in words.
        start: index of the frame shown first.
        caption: shown under the figure; plain text.
    """

    def __init__(
        self,
        label: str,
        values: Sequence[str],
        figures: Iterable[Figure],
        alts: Sequence[str],
        *,
        start: int = 0,
        caption: str = "",
    ) -> None:
        frames = [_svg(figure) for figure in figures]
        if not (len(values) == len(frames) == len(alts) > 0 and 0 <= start < len(frames)):
            raise ExplrError(
                f"a player needs as many values ({len(values)}) as figures ({len(frames)}) and descriptions ({len(alts)}), and "
                f"start={start} to be one of them."
            )
        self.label, self.values, self.frames, self.alts = label, list(values), frames, list(alts)
        self.start, self.caption = start, caption

    def __repr__(self) -> str:
        return f"Player({self.label}: {', '.join(self.values)})"

    def _repr_html_(self) -> str:
        name = "explr-" + hashlib.sha256("".join([self.label, *self.frames]).encode()).hexdigest()[:12]
        pictures = "".join(
            f'<img src="{frame}" alt="{html.escape(alt, quote=True)}" data-value="{html.escape(value, quote=True)}"'
            f' style="max-width:100%;height:auto"{"" if index == self.start else " hidden"}>'
            for index, (frame, alt, value) in enumerate(zip(self.frames, self.alts, self.values, strict=True))
        )
        caption = f"<figcaption>{html.escape(self.caption)}</figcaption>" if self.caption else ""
        # JupyterLab takes the arrow keys for itself unless the input says otherwise.
        return (
            f'<figure class="explr-player" id="{name}" style="margin:0">{pictures}'
            f'<p><label>{html.escape(self.label)} <input type="range" min="0" max="{len(self.frames) - 1}" '
            f'value="{self.start}" aria-valuetext="{html.escape(self.values[self.start], quote=True)}" '
            f'data-lm-suppress-shortcuts="true" style="width:min(24rem,60%);vertical-align:middle"></label> '
            f"<output>{html.escape(self.values[self.start])}</output></p>{caption}</figure>"
            f"<script>(function(){{var f=document.getElementById({name!r}),i=f.querySelector('input'),"
            "o=f.querySelector('output'),p=f.querySelectorAll('img');i.addEventListener('input',function(){"
            "p.forEach(function(m,k){m.hidden=k!=i.value});o.textContent=p[i.value].dataset.value;"
            "i.setAttribute('aria-valuetext',o.textContent)})})()</script>"
        )


def explore(draw: Callable[..., Figure], **sliders: tuple[float, float, float] | Sequence[str]) -> Any:
    """Draw a figure whose parameters the reader can move, where there is a kernel to move them.

    On a static page (the environment variable EXPLR_STATIC is set while the book is built) the figure is drawn once, with every
    parameter at its start.

    Args:
        draw: takes the parameters by name and returns a matplotlib figure; an ExplrError that it raises is shown as text.
        sliders: for each parameter (low, high, start) of a float slider, or a sequence of names to choose from.

    Returns:
        an ipywidgets box; on a static page the figure.
    """
    start = {name: setting[2] if _is_range(setting) else setting[0] for name, setting in sliders.items()}
    if os.environ.get("EXPLR_STATIC"):
        return draw(**start)
    with needs("figures"):
        import ipywidgets

    def show(**parameters: Any) -> None:
        try:
            figure = draw(**parameters)
        except ExplrError as error:
            print(error)
            return
        from IPython.display import display

        display(figure)  # type: ignore[no-untyped-call]
        plt.close(figure)

    controls = {
        name: ipywidgets.FloatSlider(
            value=setting[2], min=setting[0], max=setting[1], step=(setting[1] - setting[0]) / 100, description=name
        )
        if _is_range(setting)
        else ipywidgets.Dropdown(options=list(setting), description=name)
        for name, setting in sliders.items()
    }
    return ipywidgets.VBox([*controls.values(), ipywidgets.interactive_output(show, controls)])


def _is_range(setting: Any) -> TypeGuard[tuple[float, float, float]]:
    return isinstance(setting, tuple) and len(setting) == 3 and not isinstance(setting[0], str)


def _svg(figure: Figure) -> str:
    """Return the figure as a data address; text stays text, and nothing in it depends on the time or the process."""
    buffer = io.BytesIO()
    with plt.rc_context({"svg.hashsalt": "explr", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight", transparent=True)
    plt.close(figure)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
