"""The prover of scale invariance (Appendix C of Li & Arora 2020, as a program), and Lemma 1 by numbers."""

from explr.invariance.analysis import scale_invariance
from explr.invariance.findings import Approximation, NormReport, Obstruction, Row, Verification
from explr.invariance.lemma import GradientRow, Lemma1Report, lemma1
from explr.invariance.report import InvarianceReport

__all__ = [
    "Approximation",
    "GradientRow",
    "InvarianceReport",
    "Lemma1Report",
    "NormReport",
    "Obstruction",
    "Row",
    "Verification",
    "lemma1",
    "scale_invariance",
]
