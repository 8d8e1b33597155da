"""The page on what is left between a run and its twin is what the stored results give, and these are what a run gives."""

import json

import pytest

from tools import deviations

STORED = json.loads(deviations.RESULTS.read_text(encoding="utf-8"))


def test_the_page_is_what_the_results_give():
    assert deviations.PAGE.read_text(encoding="utf-8") == deviations.page(STORED), "run python -m tools.deviations"


def test_the_results_are_of_all_combinations():
    assert list(STORED["deviations"]) == list(deviations.OPTIMIZERS)
    assert all(list(norms) == list(deviations.NORMS) for norms in STORED["deviations"].values())


@pytest.mark.parametrize("optimizer", deviations.OPTIMIZERS)
@pytest.mark.parametrize("norm", deviations.NORMS)
def test_every_stored_deviation_is_rounding(optimizer, norm):
    """In float64: in float32 a ReLU that rounding switches decides. AdamW rounds a square, a root and a division more."""
    found = STORED["deviations"][optimizer][norm]
    assert max(found["float64"]["twin"]) < 30 * max(found["float64"]["control"]) < 1e-11
    assert max(found["float32"]["twin"]) < 0.1


@pytest.mark.parametrize("optimizer", ["heavy ball", "AdamW"])
def test_a_deviation_is_what_a_run_gives(optimizer):
    found = deviations.measure(optimizer, "batch")["float64"]
    assert max(found["twin"]) < 30 * max(found["control"]) < 1e-11
