"""Notebooks are executed side by side for the build, each once, and one that fails does not get into the cache."""

import nbformat
from jupyter_cache import get_cache

from tools.executed import fill, of_the_build
from tools.notebooks import ROOT


def written(folder, **cells):
    """Write a notebook of one cell for each name; return their paths."""
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    paths = [folder / f"{name}.ipynb" for name in cells]
    for path, source in zip(paths, cells.values(), strict=True):
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)], metadata=kernel), path)
    return paths


def test_notebooks_are_executed_once_and_failing_ones_are_named(tmp_path):
    count = "from pathlib import Path\nPath('count').open('a').write('x')\nprint('done')"
    good, bad = written(tmp_path, good=count, bad="1 / 0")
    assert fill(tmp_path / "cache", [good, bad]) == [bad]
    assert fill(tmp_path / "cache", [good]) == []  # without what an earlier build asked for
    assert (tmp_path / "count").read_text() == "x"
    _, executed = get_cache(tmp_path / "cache").merge_match_into_file(str(good))
    assert executed.cells[0].outputs[0].text == "done\n"


def test_the_build_executes_all_but_what_its_configuration_leaves_out():
    names = {path.name for path in (ROOT / "book").glob("*.ipynb")}
    assert {path.name for path in of_the_build()} == names - {"appendix-ledger.ipynb"}
