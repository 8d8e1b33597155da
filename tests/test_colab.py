"""What the set-up cell asks for leaves everything on Colab as it is. `make test-colab` tries it with pip and runs notebooks."""

import re

import pytest
from packaging.requirements import Requirement

from tests.test_project import PROJECT, URL
from tools import colab, notebooks


def would_be_replaced(project):
    """Return the requirements of the set-up cell that what Colab has does not meet."""
    extras = re.search(r"explr\[([\w,]+)\]", notebooks.set_up_source(URL))[1].split(",")
    asked = [*project["dependencies"], *(text for extra in extras for text in project["optional-dependencies"][extra])]
    return [text for text in asked if colab.COLAB[(one := Requirement(text)).name] not in one.specifier]


def test_the_set_up_cell_would_replace_nothing_that_colab_has():
    assert would_be_replaced(PROJECT) == []
    assert set(colab.STAY) <= colab.COLAB.keys()


@pytest.mark.parametrize("newer", ["torch>=2.12", "numpy>=2.1", "ipywidgets>=8", "torch==2.4", "matplotlib<3.10"])
def test_that_check_finds_a_bound_that_colab_does_not_meet(newer):
    name = Requirement(newer).name
    extras = PROJECT["optional-dependencies"]
    changed = {
        "dependencies": [newer if Requirement(text).name == name else text for text in PROJECT["dependencies"]],
        "optional-dependencies": {
            key: [newer if Requirement(t).name == name else t for t in texts] for key, texts in extras.items()
        },
    }
    assert would_be_replaced(changed) == [newer]
