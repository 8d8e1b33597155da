"""The repository is in step with itself: its address, its environments, its notebooks, its table of contents."""

import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

import explr
from tools import address, notebooks

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read_yaml(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


# ---- the address


def test_the_address_is_the_same_everywhere():
    assert address.out_of_step() == []
    assert PROJECT["urls"]["Repository"] == address.address() == read_yaml("_config.yml")["repository"]["url"]


def test_nobody_can_own_the_placeholder():
    assert len(address.PLACEHOLDER) == 40  # GitHub allows an account at most 39 characters


@pytest.fixture
def copy_of_the_project(tmp_path):
    for path in [ROOT / "pyproject.toml", *address.files_with_copies()]:
        (tmp_path / path.relative_to(ROOT)).parent.mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / path.relative_to(ROOT))
    return tmp_path


@pytest.mark.parametrize("slug", ["me/explr", "Some-One/my.fork_2"])
def test_one_command_changes_the_address_everywhere_and_back(slug, copy_of_the_project):
    files = [copy_of_the_project / "pyproject.toml", *address.files_with_copies(copy_of_the_project)]
    before = {path: path.read_text(encoding="utf-8") for path in files}
    old = address.address(copy_of_the_project)
    address.change(f"https://github.com/{slug}.git", copy_of_the_project)
    assert address.address(copy_of_the_project) == f"https://github.com/{slug}"
    assert address.out_of_step(copy_of_the_project) == []
    for path in files:
        left = [line[:200] for line in path.read_text(encoding="utf-8").splitlines() if old.removeprefix("https://") in line]
        assert not left, f"{path.name} still has {left}"
    address.change(old, copy_of_the_project)
    assert {path: path.read_text(encoding="utf-8") for path in files} == before


@pytest.mark.parametrize("name", ["_config.yml", "README.md", "CITATION.cff", "CONTRIBUTING.md"])
def test_a_copy_that_is_out_of_step_is_found(name, copy_of_the_project):
    path = copy_of_the_project / name
    slug = address.address().removeprefix("https://github.com/")
    path.write_text(path.read_text(encoding="utf-8").replace(slug, "stranger/explr"), encoding="utf-8")
    assert any(name in complaint for complaint in address.out_of_step(copy_of_the_project))


@pytest.mark.parametrize("url", ["github.com/me/explr", "https://github.com/me", "https://example.org/me/explr"])
def test_an_address_that_is_none_is_refused(url, copy_of_the_project):
    with pytest.raises(SystemExit, match="not the address"):
        address.change(url, copy_of_the_project)


# ---- the environments


def test_conda_installs_what_pip_installs():
    """Both install the project with the same extras, and so the lists of pyproject.toml."""
    *conda, pip = read_yaml("environment.yml")["dependencies"]
    assert f"python{PROJECT['requires-python']}" in conda
    assert pip == {"pip": ["-e .[book,test]"]}
    assert "--editable '.[book,test]'" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert set(PROJECT["optional-dependencies"]) == {"experiments", "figures", "book", "test"}


def test_dependencies_have_lower_bounds_only():
    extras = PROJECT["optional-dependencies"]
    needed = [*PROJECT["dependencies"], *extras["experiments"], *extras["figures"]]
    assert [d for d in needed if not re.fullmatch(r"[a-z]+>=[\d.]+", d)] == []


def test_versions_agree():
    assert explr.__version__ == PROJECT["version"] == str(read_yaml("CITATION.cff")["version"])


# ---- the book


def test_every_page_of_the_book_is_in_its_contents():
    toc = read_yaml("_toc.yml")
    listed = {toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])}
    pages = {f"book/{path.stem}" for path in (ROOT / "book").iterdir() if path.suffix in {".ipynb", ".md"}}
    assert listed == pages


def test_every_module_that_a_user_calls_is_on_the_api_page():
    page = (ROOT / "book" / "api.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"automodule:: explr\.([\w.]+)", page))
    files = [path.relative_to(ROOT / "explr").with_suffix("") for path in (ROOT / "explr").rglob("*.py")]
    modules = {".".join(path.parts) for path in files if not path.name.startswith("_")}
    inner = {name for name in modules if name.startswith("invariance.")}
    inner -= {"invariance.analysis", "invariance.report", "invariance.lemma"}
    assert documented == modules - inner - {"experiments.files", "experiments.progress", "data", "models"}
    assert [name for name in inner if f"`{name.rpartition('.')[2]}`" not in page] == []


@every_notebook
def test_notebook_is_normalised(path):
    text = path.read_text(encoding="utf-8")
    assert text == notebooks.text_of(notebooks.normalise(notebooks.read(path))), "run `make format`"


@every_notebook
def test_notebook_has_outputs_and_no_errors(path):
    """A notebook without outputs would pass nbval in silence."""
    cells = [cell for cell in notebooks.read(path).cells if cell.cell_type == "code"]
    assert any(cell.outputs for cell in cells), "it was never executed: run `make notebooks`"
    checked = [cell for cell in cells if "NBVAL_CHECK_OUTPUT" in cell.source]
    assert checked, "no cell is marked NBVAL_CHECK_OUTPUT, so nbval compares nothing"
    for cell in cells:
        assert cell.outputs or cell not in checked, f"is compared, but has no output:\n{cell.source}"
        for output in cell.outputs:
            assert output.output_type != "error", f"failed:\n{cell.source}"
            shown = output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))
            assert not re.search(r" at 0x[0-9a-f]{6}", shown), f"shows a memory address:\n{cell.source}"


@every_notebook
def test_notebook_installs_explr_on_colab_and_leaves_torch_alone(path):
    first = next(cell for cell in notebooks.read(path).cells if cell.cell_type == "code")
    assert first.source == notebooks.set_up_source()
    assert first.metadata.tags == ["hide-cell"]
    assert not first.outputs


@every_notebook
def test_notebook_links_to_itself_in_colab(path):
    link = notebooks.colab_link(path)
    text = "\n".join(cell.source for cell in notebooks.read(path).cells if cell.cell_type == "markdown")
    assert set(re.findall(r"https://colab\.research\.google\.com/[^\s)\"]+", text)) == {link}


def test_set_up_installs_the_stated_address_only_when_explr_is_missing():
    source = notebooks.set_up_source()
    assert f'%pip install -q "explr @ git+{address.address()}"' in source
    assert source.index("import explr") < source.index("except ModuleNotFoundError") < source.index("%pip")


# ---- the normal form


def messy_notebook():
    stream = [{"output_type": "stream", "name": "stdout", "text": text} for text in ("one\n", "two\n")]
    view = {"text/plain": "0%|", notebooks.WIDGET_VIEW: {"model_id": "a1b2"}}
    widget = {"output_type": "display_data", "data": view, "metadata": {}}
    result = {"output_type": "execute_result", "data": {"text/plain": "3"}, "metadata": {}, "execution_count": 17}
    code = {"cell_type": "code", "execution_count": 17}
    printing = {"source": "print()", "outputs": stream, "metadata": {"execution": {"iopub.status.busy": "now"}}}
    cells = [
        {"cell_type": "markdown", "id": "same", "source": "# Title", "metadata": {"collapsed": True}},
        {**code, **printing, "id": "same"},
        {**code, "source": "3", "outputs": [widget, result], "metadata": {"tags": ["x"]}},
    ]
    metadata = {"widgets": {"state": {}}, "kernelspec": {"name": "mine"}}
    return nbformat.from_dict({"nbformat": 4, "nbformat_minor": 4, "metadata": metadata, "cells": cells})


def test_normalising_drops_what_a_rerun_changes():
    notebook = notebooks.normalise(messy_notebook())
    title, set_up, printing, three = notebook.cells
    assert set_up.source == notebooks.set_up_source()
    assert [cell.execution_count for cell in (set_up, printing, three)] == [1, 2, 3]
    assert [output.data for output in three.outputs] == [{"text/plain": "3"}]  # the widget is gone, and what stood in for it
    assert three.outputs[0].execution_count == 3
    assert [output.text for output in printing.outputs] == ["one\ntwo\n"]
    assert title.metadata == printing.metadata == {} and three.metadata == {"tags": ["x"]}
    assert len({cell.id for cell in notebook.cells}) == 4 and title.id == "same"
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"


def test_normalising_twice_changes_nothing():
    once = notebooks.text_of(notebooks.normalise(messy_notebook()))
    again = nbformat.v4.reads(once)
    assert notebooks.text_of(notebooks.normalise(again)) == once
