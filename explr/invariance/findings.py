"""What the analysis of a network can find, one by one: an obstruction, a norm, a constant taken for an eps, an operation.

And whether numbers agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from explr.invariance.tables import few


@dataclass(frozen=True)
class Obstruction:
    """One operation at which the proof of scale invariance fails.

    Attributes:
        kind: "unequal degrees", "nonlinear", "large eps", "stored statistics", "stored state", "unknown operation" or "output".
        path: the module, as in ``model.get_submodule(path)``.
        operation: the ATen operation, such as "add" or "gelu".
        source: file, number and text of the user's line, or "" where all the code is torch's.
        degrees: the degrees that met.
        parameters: the trainable parameters that cause it.
        remedy: what would mend it.
    """

    kind: str
    path: str
    operation: str
    source: str
    degrees: tuple[Fraction, ...]
    parameters: tuple[str, ...]
    remedy: str

    def __str__(self) -> str:
        degrees = " and ".join(map(str, self.degrees))
        if self.kind == "output":
            return f"output: degree {degrees} at the output, from {few(self.parameters)}. {self.remedy}"
        what = {
            "unequal degrees": f"degrees {degrees} meet in {self.operation}",
            "large eps": f"the eps in {self.operation}, beside degree {degrees}, is not negligible",
            "nonlinear": f"{self.operation} takes degree {degrees}, but is homogeneous only at 0",
            "stored statistics": f"{self.operation} normalises degree {degrees} with stored statistics",
            "stored state": f"{self.operation} keeps degree {degrees} from step to step",
            "unknown operation": f"no rule for {self.operation}, which takes degree {degrees}: undecided",
        }[self.kind]
        where = f" ({self.source})" if self.source else ""
        return f"{self.path or 'model'}: {what}{where}. {self.remedy}"


@dataclass(frozen=True)
class NormReport:
    """A normalisation as the analysis saw it.

    Attributes:
        kind: the ATen operation: "batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm".
        degree: of the norm's input when all trainable parameters scale; None where its channels differ in degree.
        eps: what it adds to the variance.
        variance: the smallest variance (mean square, for RMS norm) seen on the example inputs.
        median_variance: the median over channels or samples.
    """

    kind: str
    degree: Fraction | None
    eps: float
    variance: float
    median_variance: float

    @property
    def relative_eps(self) -> float:
        """Size of eps relative to the median variance, and so how far the norm is from exactly scale-invariant."""
        return self.eps / self.median_variance if self.median_variance else math.inf


@dataclass(frozen=True)
class Approximation:
    """A tiny constant added to something that scales, as the eps of a hand-written norm: taken for 0, and reported.

    Attributes:
        path: the module.
        operation: "add", "clamp_min", ...
        source: the user's line.
        degree: of what it is added to.
        eps: the constant.
        relative: its size relative to the median of what it is added to, on the example inputs.
    """

    path: str
    operation: str
    source: str
    degree: Fraction
    eps: float
    relative: float


@dataclass(frozen=True)
class Row:
    """A line of the table: one operation, the degrees of its inputs and of its output, and what is wrong with it."""

    path: str
    operation: str
    degree_in: str
    degree_out: str
    note: str


@dataclass(frozen=True)
class Verification:
    """Whether a proof was held against numbers, and what came of it.

    Attributes:
        change: the largest relative change of the output when what converts is scaled; None where nothing was compared.
        precision: of the copy that was scaled: "float64", or "the precision of the network", where its code allows no other.
        reason: why nothing was compared; "" where something was.
    """

    change: float | None = None
    precision: str = ""
    reason: str = ""

    def __str__(self) -> str:
        if self.change is None:
            return f"Not verified by numbers: {self.reason}. The proof is by the rules alone."
        seen = f"the output changes by {self.change:.1e} at c = 64 or less"
        return f"Verified in {self.precision}, with each eps scaled along: {seen}."
