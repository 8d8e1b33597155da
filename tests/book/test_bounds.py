import pytest

from explr import ExplrError
from explr.book.bounds import check


@pytest.mark.parametrize("bound", [{"at_most": 0.5}, {"at_least": 1.5}, {"equals": 1.1, "within": 0.05}, {"equals": 0.9}])
def test_a_number_that_breaks_its_bound_is_an_error_that_names_both(bound):
    with pytest.raises(ExplrError, match=r"steps: measured 1 \(.*\d\): it breaks its bound"):
        check("steps", 1.0, **bound)


@pytest.mark.parametrize("measured", ["nan", "inf", "-inf"])
def test_a_number_that_is_none_keeps_to_no_bound(measured):
    for bound in ({"at_most": 1.0}, {"at_least": 1.0}, {"equals": 1.0, "within": 9.0}):
        with pytest.raises(ExplrError, match=f"measured {measured}, which decides nothing"):
            check("steps", float(measured), **bound)


def test_a_number_and_its_bound_are_printed_and_several_bounds_refused(capsys):
    check("steps", 12, at_most=20)
    assert capsys.readouterr().out == "steps: measured 12 (at most 20)\n"
    with pytest.raises(ExplrError, match="steps needs exactly one of"):
        check("steps", 12, at_most=20, equals=12)
