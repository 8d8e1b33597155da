"""explr: weight decay is an exponentially increasing learning rate, exactly (Li & Arora, ICLR 2020).

Names are imported when they are first used, so that the conversion of numbers needs no torch and starts at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from explr import data, models, schedules
    from explr.equivalence import (
        AdamWSchedule,
        ExpSchedule,
        adamw_steady_state,
        characteristic_root,
        convert,
        convert_adamw,
        growth_rate,
        texp,
        weight_decay_for,
    )
    from explr.errors import ExplrError
    from explr.experiments.records import Run, RunConfig
    from explr.experiments.training import train
    from explr.invariance import InvarianceReport, Lemma1Report, lemma1, scale_invariance
    from explr.optim import ExpLR
    from explr.scaling import rescale, unscale

__version__ = "0.1.0"

__all__ = [
    "AdamWSchedule",
    "ExpLR",
    "ExpSchedule",
    "ExplrError",
    "InvarianceReport",
    "Lemma1Report",
    "Run",
    "RunConfig",
    "adamw_steady_state",
    "characteristic_root",
    "convert",
    "convert_adamw",
    "data",
    "growth_rate",
    "lemma1",
    "models",
    "rescale",
    "scale_invariance",
    "schedules",
    "texp",
    "train",
    "unscale",
    "weight_decay_for",
]

# Where each name lives; a module under its own name.
_HOMES = {
    "explr.equivalence": "AdamWSchedule ExpSchedule adamw_steady_state characteristic_root convert convert_adamw growth_rate "
    "texp weight_decay_for",
    "explr.errors": "ExplrError",
    "explr.data": "data",
    "explr.models": "models",
    "explr.experiments.records": "Run RunConfig",
    "explr.experiments.training": "train",
    "explr.invariance": "InvarianceReport Lemma1Report lemma1 scale_invariance",
    "explr.optim": "ExpLR",
    "explr.scaling": "rescale unscale",
    "explr.schedules": "schedules",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Import a public name on its first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'explr' has no attribute {name!r}")
    module = import_module(_HOME[name])
    value = module if module.__name__.endswith(f".{name}") else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted({*globals(), *__all__})
