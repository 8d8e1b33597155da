"""What tens of thousands of updates come to, in short."""

import dataclasses

import pytest

from tools import soak


@pytest.mark.slow
@pytest.mark.parametrize("name", soak.OPTIMIZERS)
def test_weights_that_grow_by_forty_powers_of_ten_cost_neither_range_nor_memory(name):
    result = soak.soak(name, 2000)
    assert result.faults() == [], result


def test_each_fault_is_seen():
    fine = soak.Result(decades=50.0, drift=0.0, deviation=0.0, grown=0, tensors=0)
    assert fine.faults() == []
    for change in ({"decades": 39.0}, {"drift": 1e-9}, {"deviation": 1e-3}, {"grown": 10**8}, {"tensors": 1}):
        assert len(dataclasses.replace(fine, **change).faults()) == 1
