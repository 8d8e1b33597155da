"""explr: weight decay is an exponentially increasing learning rate, exactly (Li & Arora, ICLR 2020)."""

from explr import data, models, schedules
from explr.equivalence import ExpSchedule, characteristic_root, convert, growth_rate, texp, weight_decay_for
from explr.errors import ExplrError
from explr.invariance import InvarianceReport, scale_invariance
from explr.lemma import Lemma1Report, lemma1
from explr.optim import ExpLR, rescale
from explr.records import Run, RunConfig
from explr.training import train

__version__ = "0.1.0"

__all__ = [
    "ExpLR",
    "ExpSchedule",
    "ExplrError",
    "InvarianceReport",
    "Lemma1Report",
    "Run",
    "RunConfig",
    "characteristic_root",
    "convert",
    "data",
    "growth_rate",
    "lemma1",
    "models",
    "rescale",
    "scale_invariance",
    "schedules",
    "texp",
    "train",
    "weight_decay_for",
]
