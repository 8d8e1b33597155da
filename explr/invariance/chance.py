"""Random numbers that a network draws otherwise than as tensors: noticed, and the generators put back.

From Python's generator, numpy's, or one that the network holds. A trace has one outcome of such a draw, as a number. What
torch draws is an operation of the trace, whatever the generator.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from explr.errors import ExplrError
from explr.invariance.attributes import contents


@contextmanager
def generators_kept(held: Mapping[str, Any]) -> Iterator[None]:
    """Put back the states of Python's generator and numpy's, and of those among what a model holds."""
    before = [(write, read()) for read, write in map(_state_of, _generators(held).values())]
    try:
        yield
    finally:
        for write, state in before:
            write(state)


@contextmanager
def chance_in_tensors(model: nn.Module) -> Iterator[None]:
    """Raise an ExplrError if random numbers are drawn otherwise than as tensors."""
    generators = {name: g for name, g in _generators(contents(model)).items() if not isinstance(g, torch.Generator)}
    reads = {name: _state_of(generator)[0] for name, generator in generators.items()}
    before = {name: _comparable(read()) for name, read in reads.items()}
    yield
    for name, read in reads.items():
        if _comparable(read()) != before[name]:
            raise ExplrError(
                f"{type(model).__name__} draws from {name}, of which a trace sees one outcome, and a proof must hold for all. "
                "Draw with torch.rand, and choose with torch.where; or use explr.lemma1, which goes by numbers."
            )


def _comparable(state: Any) -> Any:
    """Return a state without arrays, which do not compare as one."""
    if isinstance(state, dict):
        return {key: _comparable(value) for key, value in state.items()}
    return state.tobytes() if isinstance(state, np.ndarray) else state


def _generators(held: Mapping[str, Any]) -> dict[str, Any]:
    kinds = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)
    own = {f"its own {path}": value for path, value in held.items() if isinstance(value, kinds)}
    own = {path: value for path, value in own.items() if not isinstance(value, random.SystemRandom)}  # which has no state
    return {"Python's random": random, "numpy.random": np.random, **own}


def _state_of(generator: Any) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """Return how the state of a generator is read, and how it is set."""
    if generator is random or isinstance(generator, random.Random):
        return generator.getstate, generator.setstate
    if isinstance(generator, torch.Generator):
        return generator.get_state, generator.set_state
    if isinstance(generator, np.random.Generator):
        bits = generator.bit_generator
        return lambda: bits.state, lambda state: setattr(bits, "state", state)
    return lambda: generator.get_state(legacy=False), generator.set_state
