"""Every claim of the source, and a few of our own, and what the book measured of them.

A chapter states what it measured with :func:`claim`; the result is shown in the chapter and stays in the notebook's output. The
ledger of the appendix is read from those outputs by :func:`ledger`, so that it cannot say anything else than the chapters do.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from explr.book.bounds import hold
from explr.errors import ExplrError

# The source is the authors' post "Exponential Learning Rate Schedules for Deep Learning (Part 1)"; the words are ours.
CLAIMS = {
    "lr-size": "Too small a learning rate slows optimisation down, too large a one overshoots.",
    "lr-smoothness": "The standard analysis ties the right learning rate to the smoothness of the loss.",
    "lr-temperature": "SGD at a large learning rate is like a random walk at a high temperature; a lower one lets it settle.",
    "step-decay": "Figure 1: step decay drops the learning rate after given epochs.",
    "oscillating": "Figure 1: cosine and triangular schedules raise the learning rate again and again.",
    "oscillating-trains": "Cosine and triangular schedules train networks well.",
    "norm-benefits": "Batch normalisation benefits optimisation, and generalisation across architectures.",
    "explr-trains": "State-of-the-art image networks train with a learning rate that is multiplied by 1 + a at every step.",
    "explr-astronomical": "That learning rate soon reaches astronomical values.",
    "explr-varies": "The growth may vary over the epochs.",
    "explr-power": "Exponential schedules reach, as functions, every network that step-decay schedules reach.",
    "norm-batch": "The result holds for batch normalisation.",
    "norm-group": "The result holds for group normalisation.",
    "norm-layer": "The result holds for layer normalisation.",
    "norm-instance": "The result holds for instance normalisation.",
    "effective-lr": "Weight decay together with normalisation acts as an increase of the (effective) learning rate.",
    "equivalence": (
        "For commonly used values, weight decay + constant rate + BN + momentum gives the networks of an exponential rate + BN "
        "+ momentum."
    ),
    "decaying-exponent": "If the rate decays in steps, the exponent of its counterpart decays.",
    "any-data": "The theorem makes no mention of the data set.",
    "wd-as-schedule": "Under fairly normal conditions a learning-rate schedule realises the effect of weight decay exactly.",
    "figure2-trajectory": "Figure 2: the trajectory is unchanged when weight decay is turned off and the rate grows.",
    "figure2-1481": (
        "Figure 2: the constant 1.481 is what the theory predicts from the original hyperparameters (the caption says: per "
        "iteration)."
    ),
    "figure2-norm": "Figure 2: the norm of the second residual block's first convolution grows exponentially.",
    "figure2-ratio": "Figure 2: the squared weight norm divided by the learning rate is constant.",
    "invariant-convnet": "Convnets with normalisation and a fixed output layer are scale-invariant.",
    "invariant-resnet": "So are ResNets (and PreResNets).",
    "invariant-densenet": "So are DenseNets.",
    "head-fixed": "This needs the output layer, which is not normalised, to be fixed.",
    "head-accuracy": "Fixing the output layer at random does not harm the final accuracy.",
    "loss-invariant": "A scale-invariant network has a scale-invariant loss.",
    "lemma1-orthogonal": "Lemma 1 (1): the gradient is perpendicular to the weights.",
    "lemma1-inverse": "Lemma 1 (2): the gradient at c times the weights is 1/c times the gradient.",
    "norm-monotone": "Without weight decay the norm of the weights never shrinks under SGD.",
    "gd-rate": "Gradient descent at any fixed rate finds a gradient below epsilon within O(1/epsilon^2) steps.",
    "theorem1": "Theorem 1: the equivalent rate is alpha^(-2t-1) times the initial one.",
    "theorem1-root": "Theorem 1: alpha is a non-zero root of x^2 - (1 + gamma - lambda eta) x + gamma = 0.",
    "theorem1-no-momentum": "Without momentum the equivalent rate is (1 - lambda eta)^(-2t-1) times the initial one.",
    "decay-needed": "State-of-the-art accuracy needs the learning rate to be reduced a few times.",
    "theorem2": "Theorem 2: TEXP generates the networks of step decay.",
    "theorem2-phase": "Theorem 2: entering a phase, the growth becomes smaller and the rate is divided by C_I.",
    "figure5": "Figure 5: step decay and TEXP have similar trajectories and performance.",
}

# Ours: the source does not speak of these optimizers. The ledger shows them apart from its claims.
BEYOND = {
    "nesterov-twin": "SGD with Nesterov momentum has an exact twin without weight decay, with its own momentum and dampening.",
    "adamw-twin": "AdamW has an exact twin without weight decay: an exponential rate and a shorter memory.",
    "sphere": "On the unit sphere at the effective rate, SGD computes the functions that it computes with weight decay.",
    "transformer-twin": "A normalised transformer trained by AdamW, warm-up and cosine has an exact twin without weight decay.",
}
_WORDS = {**CLAIMS, **BEYOND}

# The source does not name these conditions, under which the book's networks are scale-invariant: a caveat of what they show.
NEEDS = "Norms without trained scale and shift, no biases, a frozen head, eps negligible."

# The three that the others lean on, and why.
CENTRAL = {
    "lemma1-inverse": "Both theorems follow from this one property of the gradient: whatever has it has a twin.",
    "equivalence": "It is the message of the source. The theorems state it with its conditions.",
    "figure5": "No theorem says whether the equality outlives 200 epochs of rounding. Only long runs can.",
}

HOLDS, CAVEAT, UNDECIDED, FAILS = VERDICTS = ("holds", "holds, with a caveat", "undecided", "FAILS")
NOT_MEASURED = "not measured"

_VIEW = "explr"  # key of an output's metadata


@dataclass(frozen=True)
class Claim:
    """A measurement that bears on a claim, of the source or our own.

    Attributes:
        key: a key of CLAIMS or BEYOND.
        quantity: what was measured, in words.
        measured: the number.
        bound: what it was held against, in words.
        holds: the verdict; None if this measurement cannot decide.
        caveat: a correction or a condition that the source does not state, or why nothing is decided; "" if none.
        interval: the confidence interval of the number, where it has one.
    """

    key: str
    quantity: str
    measured: float
    bound: str
    holds: bool | None
    caveat: str = ""
    interval: Sequence[float] | None = None

    @property
    def verdict(self) -> str:
        """The verdict in words."""
        if self.holds is None:
            return UNDECIDED
        return (CAVEAT if self.caveat else HOLDS) if self.holds else FAILS

    @property
    def gives_way(self) -> bool:
        """Whether it is too small to decide anything, and has no interval, so that any other of the same claim outranks it."""
        return self.holds is None and self.interval is None

    @property
    def against(self) -> str:
        """What the number was held against, after its interval if it has one."""
        return f"interval {self.interval[0]:.4g} to {self.interval[1]:.4g}; {self.bound}" if self.interval else self.bound

    def __str__(self) -> str:
        text = f"[{self.key}] {self.verdict}: {self.quantity}, measured {self.measured:.4g} ({self.against})"
        return f"{text}. {self.caveat}" if self.caveat else text

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, Any]]:
        return {"text/plain": str(self), "text/html": self._html()}, {_VIEW: asdict(self)}

    def _html(self) -> str:
        _, _, rest = str(self).partition(": ")
        return (
            f'<div class="explr-claim"><p><em>{_whose(self.key)}:</em> {html.escape(_WORDS[self.key])}</p>'
            f"<p><strong>{self.verdict}</strong>: {html.escape(rest)}</p></div>"
        )


def claim(
    key: str,
    quantity: str,
    measured: float,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    equals: float | None = None,
    within: float = 0.0,
    interval: Sequence[float] | None = None,
    caveat: str = "",
    undecided: str = "",
) -> Claim:
    """Hold a measured number against a claim; show the result as the last value of a notebook's cell.

    With a confidence interval the claim holds if all of it keeps to the bound, fails if none of it does, and is undecided in
    between.

    Args:
        key: a key of CLAIMS or BEYOND.
        quantity: what was measured, in words.
        measured: the number; True and False count as 1 and 0.
        at_most: the claim holds if the number is not above this ...
        at_least: ... or not below this ...
        equals: ... or this, up to ``within``. Give exactly one of the three.
        within: tolerance of ``equals``, absolute.
        interval: lower and upper end of the number's confidence interval; for a number that one run alone gave, of the whole
            range that it can have.
        caveat: a correction or condition that the source does not state.
        undecided: why this measurement is too small to decide, whatever it shows. Without an interval it then gives way to any
            that can: a toy is forgotten beside a record, a record that is too small is not forgotten beside a toy.

    Raises:
        ExplrError: for an unknown key, none or several bounds, a measurement that is no finite number, or an interval without
            the number in it.

    >>> claim("lemma1-orthogonal", "cosine of gradient and weights", 3e-17, at_most=1e-12).verdict
    'holds'
    >>> claim("figure5", "difference", 0.001, equals=0.0, within=0.005, interval=(-0.007, 0.009)).verdict
    'undecided'
    """
    if key not in _WORDS:
        raise ExplrError(f"claim {key!r} is unknown: use a key of explr.book.ledger.CLAIMS, or of BEYOND.")
    value = float(measured)
    holds, bound = hold(
        f"claim {key!r}", value, at_most=at_most, at_least=at_least, equals=equals, within=within, interval=interval
    )
    if undecided:
        holds, caveat = None, f"{undecided} {caveat}".rstrip()
    return Claim(key, quantity, value, bound, holds, caveat, [float(end) for end in interval] if interval else None)


@dataclass(frozen=True)
class Entry:
    """A claim with everything that the chapters measured of it, each with the notebook and the cell."""

    key: str
    text: str
    measurements: tuple[tuple[str, str, Claim], ...]

    @property
    def decisive(self) -> Claim | None:
        """The measurement that says the worst, those apart that give way; None if nothing was measured."""
        measured = [measurement for _, _, measurement in self.measurements]
        heard = [measurement for measurement in measured if not measurement.gives_way] or measured
        return max(heard, key=lambda measurement: VERDICTS.index(measurement.verdict), default=None)

    @property
    def verdict(self) -> str:
        """The verdict of the decisive measurement."""
        return self.decisive.verdict if self.decisive else NOT_MEASURED


class Ledger(list[Entry]):
    """The entries of the ledger, in order; shown as a table."""

    def summary(self) -> Summary:
        """Return how many claims hold, which do not, and what became of the three that the others lean on."""
        return Summary(tuple(self))

    def _repr_html_(self) -> str:
        rows = "".join(_row(entry) for entry in self)
        whose = _whose(self[0].key) if self else "Claim"
        head = "".join(f'<th scope="col">{name}</th>' for name in (whose, "Measured", "Where", "Verdict"))
        return f'<table class="explr-ledger"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'

    def __repr__(self) -> str:
        return "\n".join(f"{entry.key}: {entry.verdict}" for entry in self)


@dataclass(frozen=True)
class Summary:
    """The ledger on half a page, for above its table, to whose rows it links."""

    entries: tuple[Entry, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many claims have each verdict; "not measured" only where there are such."""
        verdicts = [entry.verdict for entry in self.entries]
        return {name: verdicts.count(name) for name in (*VERDICTS, NOT_MEASURED) if name in VERDICTS or name in verdicts}

    @property
    def open(self) -> dict[str, list[Entry]]:
        """The claims of every verdict that is not "holds", with a caveat or without."""
        verdicts = [name for name, count in self.counts.items() if count and name not in (HOLDS, CAVEAT)]
        return {name: [entry for entry in self.entries if entry.verdict == name] for name in verdicts}

    @property
    def central(self) -> list[tuple[Entry, str]]:
        """The claims of CENTRAL, each with why it is there."""
        found = {entry.key: entry for entry in self.entries}
        return [(found[key], why) for key, why in CENTRAL.items() if key in found]

    def __repr__(self) -> str:
        measured = sum(len(entry.measurements) for entry in self.entries)
        lines = [f"{len(self.entries)} claims, {measured} measurements"]
        lines += [f"{verdict}: {count}" for verdict, count in self.counts.items()]
        lines += [f"{verdict}: {', '.join(entry.key for entry in entries)}" for verdict, entries in self.open.items()]
        return "\n".join(lines + [str(entry.decisive or f"[{entry.key}] {NOT_MEASURED}") for entry, _ in self.central])

    def _repr_html_(self) -> str:
        measured = sum(len(entry.measurements) for entry in self.entries)
        counts = "".join(
            f'<div data-verdict="{verdict}"><dt>{verdict}</dt><dd>{count}</dd></div>' for verdict, count in self.counts.items()
        )
        central = "".join(
            f"<li>{_link(entry)} {why} <strong>{_capital(entry.verdict)}</strong>{_because(entry.decisive)}</li>"
            for entry, why in self.central
        )
        rest = "".join(
            f"<p><strong>{_capital(verdict)}</strong></p><ul>{''.join(f'<li>{_link(entry)}</li>' for entry in entries)}</ul>"
            for verdict, entries in self.open.items()
        )
        return (
            f'<div class="explr-summary"><p>{len(self.entries)} claims, {measured} measurements:</p><dl>{counts}</dl>'
            f"<p><strong>The three that the others lean on</strong></p><ol>{central}</ol>{rest}</div>"
        )


def ledger(folder: str | Path = ".", claims: dict[str, str] = CLAIMS) -> Ledger:
    """Read the claims out of the outputs of all notebooks in ``folder``; claims without any are listed as not measured.

    Args:
        folder: where the notebooks are.
        claims: which to list: CLAIMS, those of the source, or BEYOND, ours.

    Raises:
        ExplrError: if a notebook cannot be read, or claims something that is in neither.
    """
    found: dict[str, list[tuple[str, str, Claim]]] = {key: [] for key in _WORDS}
    for path in sorted(Path(folder).glob("*.ipynb")):
        try:
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            for cell in cells:
                for output in cell.get("outputs", []):
                    stored = output.get("metadata", {}).get(_VIEW)
                    if stored is not None:
                        measurement = Claim(**stored)
                        found[measurement.key].append((path.stem, cell["id"], measurement))
        except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ExplrError(
                f"{path} has no claims that this version of explr can read ({error}): execute it again."
            ) from error
    return Ledger(Entry(key, text, tuple(found[key])) for key, text in claims.items())


def _whose(key: str) -> str:
    return "Claim of the source" if key in CLAIMS else "Beyond the source"


def _link(entry: Entry) -> str:
    return f'<a href="#claim-{entry.key}">{html.escape(entry.text)}</a>'


def _capital(verdict: str) -> str:
    return verdict[0].upper() + verdict[1:]


def _because(decisive: Claim | None) -> str:
    return f": {html.escape(str(decisive).partition(': ')[2])}" if decisive else "."


def _row(entry: Entry) -> str:
    measured, where = [], []
    for notebook, _, m in entry.measurements:
        caveat = f" <em>{html.escape(m.caveat)}</em>" if m.caveat else ""
        measured.append(f"<li>{html.escape(m.quantity)}: {m.measured:.4g} ({html.escape(m.against)}).{caveat}</li>")
        link = f'<a href="{notebook}.html">{html.escape(_title(notebook))}</a>'
        if link not in where:
            where.append(link)
    return (
        f'<tr id="claim-{entry.key}" data-verdict="{entry.verdict}"><th scope="row">{html.escape(entry.text)}</th>'
        f"<td><ul>{''.join(measured)}</ul></td><td>{', '.join(where)}</td><td>{entry.verdict}</td></tr>"
    )


def _title(notebook: str) -> str:
    number = re.match(r"0*(\d+)-", notebook)
    return f"Chapter {number[1]}" if number else notebook.removeprefix("appendix-").capitalize()
