"""The repository is in step with itself: its address, its environments, its notebooks, its table of contents."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

import explr
from tools import address, notebooks, site

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
API_PAGES = ("theorem", "invariance", "experiments", "book")  # api-….md, one a wing
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read_yaml(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


# ---- the address


URL = "https://github.com/me/explr"
NEEDS_AN_ADDRESS = r"git clone|git\+http|colab\.research|github\.com/(?!me/explr)[\w-]+/explr|repository-code|_button"


def test_every_file_says_what_follows_from_the_address():
    assert address.out_of_step() == []
    assert PROJECT.get("urls", {}).get("Repository") == address.address()


def test_no_file_holds_the_placeholder_of_old():
    """It stood in every page before a repository could be without an address."""
    found = subprocess.run(["git", "grep", "-l", "this-address-is-" + "not-set"], cwd=ROOT, capture_output=True, text=True)
    if found.returncode > 1:
        pytest.skip("not a checkout")
    assert found.stdout == ""


@pytest.fixture
def copied(tmp_path):
    """Return a copy of everything that depends on the address, and of what changes it."""
    names = {name for name, _, _ in address.PLACES} | {"CONTRIBUTING.md", "Makefile", "tools/address.py", "tools/notebooks.py"}
    for name in names | {path.relative_to(ROOT).as_posix() for path in NOTEBOOKS}:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def make_address(folder, url=""):
    """Run ``make address`` there, in the environment of the tests."""
    own = [f"BIN={Path(sys.executable).parent}", "VENV="]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(["make", "address", f"URL={url}", *own], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def texts(folder):
    return {path: path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*")) if path.suffix not in {"", ".pyc"}}


def test_one_command_sets_changes_and_removes_the_address(copied):
    def found(pattern):
        said = {path.name: text for path, text in texts(copied).items() if path.parent.name != "tools"}
        return {name: matches for name, text in said.items() if (matches := re.findall(pattern, text))}

    make_address(copied, "none")
    without = texts(copied)
    assert found(NEEDS_AN_ADDRESS) == {}
    assert "repository" not in yaml.safe_load(without[copied / "_config.yml"])

    make_address(copied, f"{URL}.git")
    assert f"The address is {URL}" in make_address(copied)  # checks the notebooks as well
    config = yaml.safe_load((copied / "_config.yml").read_text(encoding="utf-8"))
    assert config["repository"]["url"] == URL and config["html"]["use_repository_button"] is True
    changed = ("html", "repository", "sphinx")
    assert config.items() >= {**read_yaml("_config.yml"), **{key: config[key] for key in changed}}.items()
    meta = config["sphinx"]["config"]["myst_html_meta"]
    assert meta["property=og:image"] == f"{URL}/raw/main/book/_static/preview.png"
    with_it = texts(copied)
    assert {path.name for path in with_it if with_it[path] != without[path]} == {
        *(Path(name).name for name, _, _ in address.PLACES),
        *(path.name for path in NOTEBOOKS),
    }

    make_address(copied, "https://github.com/Some-One/my.fork_2")
    assert found(r"github(?:\.com)?/me/explr[^`\s]") == {}
    make_address(copied, URL)
    assert texts(copied) == with_it  # an address twice is an address once
    make_address(copied, "none")
    assert texts(copied) == without
    make_address(copied, "none")
    assert texts(copied) == without


@pytest.mark.parametrize("url", [None, URL])
@pytest.mark.parametrize("name", ["pyproject.toml", "_config.yml", "README.md", "CITATION.cff", "book/reproduce.md"])
def test_a_file_that_is_out_of_step_is_found(name, url, copied):
    address.change(url or "none", copied)
    assert address.out_of_step(copied) == []
    said = next(with_it if url else without for place, without, with_it in address.PLACES if place == name)
    path = copied / name
    said = said.replace("{url}", URL)
    path.write_text(path.read_text(encoding="utf-8").replace(said, said.upper()), encoding="utf-8")
    assert any(name in complaint for complaint in address.out_of_step(copied))


@pytest.mark.parametrize("url", ["github.com/me/explr", "https://github.com/me", "https://example.org/me/explr", "None"])
def test_an_address_that_is_none_is_refused(url, copied):
    with pytest.raises(SystemExit, match="not the address"):
        address.change(url, copied)


@pytest.mark.parametrize("stated, here, refuses", [("none", URL, True), (URL, URL + "2", True), (URL, URL.upper(), False)])
def test_a_book_with_another_address_is_not_published(stated, here, refuses, copied):
    command = [sys.executable, "-m", "tools.address", "--is", here]
    assert " ".join(command[1:4]) in (ROOT / ".github/workflows/publish.yml").read_text(encoding="utf-8")
    address.change(stated, copied)
    done = subprocess.run(command, cwd=copied, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True)
    assert done.returncode == refuses
    assert (f"make address URL={here}" in done.stdout) == refuses


# ---- the environments


def test_conda_installs_what_pip_installs():
    """Both install the project with the same extras, and so the lists of pyproject.toml."""
    *conda, pip = read_yaml("environment.yml")["dependencies"]
    assert f"python{PROJECT['requires-python']}" in conda
    assert pip == {"pip": ["-e .[book,test]"]}
    assert "--editable '.[book,test]'" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert set(PROJECT["optional-dependencies"]) == {"experiments", "figures", "book", "test", "cluster", "libraries"}


def makefile_under(python, folder):
    """Run the Makefile's first step with another Python; return its error output and whether it left an environment."""
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copy(ROOT / "pyproject.toml", folder)
    outer = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}  # of the make that may be running this test
    env = {key: value for key, value in os.environ.items() if key not in outer}
    done = subprocess.run(["make", "test", f"PYTHON={python}"], cwd=folder, capture_output=True, text=True, env=env)
    assert done.returncode != 0
    return done.stderr, (folder / ".venv").exists()


def test_a_python_that_is_too_old_gets_one_sentence(tmp_path):
    needed = PROJECT["requires-python"].removeprefix(">=")
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\ncase "$1" in --version) echo Python 3.9.2;; -c) exit 1;; *) mkdir .venv;; esac\n')
    old.chmod(0o755)
    said, left = makefile_under(old, tmp_path)
    sentence, *rest = said.splitlines()
    assert sentence.startswith(f"explr needs Python {needed} or later") and "Python 3.9.2" in sentence and "PYTHON=" in sentence
    assert not left and all(line.startswith("make: ***") for line in rest)


def test_a_missing_python_gets_one_sentence(tmp_path):
    said, left = makefile_under("no-such-python", tmp_path)
    assert "explr needs Python" in said.splitlines()[0] and "not found" in said.splitlines()[0]
    assert not left


def test_an_environment_that_fails_is_not_left_half_made(tmp_path):
    half = tmp_path / "python-without-ensurepip"
    half.write_text('#!/bin/sh\n[ "$1" = -c ] || { mkdir .venv; exit 1; }\n')
    half.chmod(0o755)
    assert makefile_under(half, tmp_path)[1] is False


def test_dependencies_have_lower_bounds_only():
    extras = PROJECT["optional-dependencies"]
    needed = [*PROJECT["dependencies"], *extras["experiments"], *extras["figures"]]
    assert [d for d in needed if not re.fullmatch(r"[a-z]+>=[\d.]+", d)] == []


def test_versions_agree():
    assert explr.__version__ == PROJECT["version"] == str(read_yaml("CITATION.cff")["version"])


def test_the_code_of_the_readme_runs_when_pasted_block_after_block(capsys, caplog):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    session: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, session)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith("8 tensors do not convert")
    (said,) = [record.getMessage() for record in caplog.records if record.name == "explr"]
    assert said.startswith("ExpLR: 54 of 62 tensors") and said not in "".join(printed)  # once is enough


# ---- the book


def test_every_page_of_the_book_is_in_its_contents():
    toc = read_yaml("_toc.yml")
    pages = {f"book/{path.stem}" for path in (ROOT / "book").iterdir() if path.suffix in {".ipynb", ".md"}}
    assert set(site.listed(toc)) == pages


def test_every_module_that_a_user_calls_is_on_the_api_page_of_its_wing():
    wings = {name: (ROOT / "book" / f"api-{name}.md").read_text(encoding="utf-8") for name in API_PAGES}
    documented = set()
    for name, page in wings.items():
        here = set(re.findall(r"automodule:: explr\.([\w.]+)", page))
        assert {module.partition(".")[0] if "." in module else "theorem" for module in here} == {name}
        documented |= here
    files = [path.relative_to(ROOT / "explr").with_suffix("") for path in (ROOT / "explr").rglob("*.py")]
    modules = {".".join(path.parts) for path in files if not path.name.startswith("_")}
    inner = {name for name in modules if name.startswith("invariance.")}
    inner -= {"invariance.analysis", "invariance.report", "invariance.findings", "invariance.lemma"}
    assert documented == modules - inner - {
        "checks",
        "groups",
        "experiments.files",
        "experiments.progress",
        "book.style",
        "data",
        "models",
    }
    assert [name for name in inner if f"`{name.rpartition('.')[2]}`" not in wings["invariance"]] == []


def test_every_public_name_is_on_the_first_api_page_or_documented_with_its_wing():
    """What users call first leads to where it is documented."""
    first = (ROOT / "book" / "api.md").read_text(encoding="utf-8")
    called = {name for name in explr.__all__ if callable(getattr(explr, name)) and not isinstance(getattr(explr, name), type)}
    rare = {"adamw_steady_state", "characteristic_root", "texp", "weight_decay_for"}
    assert called - rare == set(re.findall(r"py:func}`~explr\.[\w.]+\.(\w+)`", first)) - {"best_records"}


@every_notebook
def test_notebook_is_normalised(path):
    text = path.read_text(encoding="utf-8")
    again = notebooks.normalise(notebooks.read(path), path.name, address.address())
    assert text == notebooks.text_of(again), "run `make format`"


@every_notebook
def test_notebook_has_outputs_and_no_errors(path):
    """A notebook without outputs would pass nbval in silence."""
    cells = [cell for cell in notebooks.read(path).cells if cell.cell_type == "code"]
    assert any(cell.outputs for cell in cells), "it was never executed: run `make notebooks`"
    checked = [cell for cell in cells if "nbval-check-output" in cell.metadata.get("tags", [])]
    assert checked, "no cell has the tag nbval-check-output, so nbval compares nothing"
    for cell in cells:
        assert cell.outputs or cell not in checked, f"is compared, but has no output:\n{cell.source}"
        for output in cell.outputs:
            assert output.output_type != "error", f"failed:\n{cell.source}"
            shown = output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))
            assert not re.search(r" at 0x[0-9a-f]{6}", shown), f"shows a memory address:\n{cell.source}"


@every_notebook
def test_notebook_without_an_address_says_how_to_open_it_here(path):
    notebook = notebooks.normalise(notebooks.read(path), path.name, None)
    title, line, *_ = notebook.cells[0].source.split("\n\n")
    assert title.startswith("# ") and line == notebooks.run_line(path.name, None)
    assert "`make lab`" in line and path.name in line and "http" not in line
    assert re.search(r"^lab:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert not [cell.source for cell in notebook.cells if cell.id == notebooks.SET_UP_ID or "%pip" in cell.source]


@every_notebook
def test_notebook_with_an_address_installs_explr_on_colab_and_leaves_torch_alone(path):
    without = notebooks.normalise(notebooks.read(path), path.name, None)
    notebook = notebooks.normalise(notebooks.read(path), path.name, URL)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert first.source == notebooks.set_up_source(URL)
    assert first.metadata.tags == ["hide-cell"]
    assert not first.outputs
    assert [cell for cell in notebook.cells[1:] if cell is not first] == without.cells[1:]  # not even another number


@every_notebook
def test_notebook_with_an_address_links_to_itself_in_colab(path):
    notebook = notebooks.normalise(notebooks.read(path), path.name, URL)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    link = f"https://colab.research.google.com/github/me/explr/blob/main/{path.relative_to(ROOT).as_posix()}"
    assert re.findall(r"https://colab\.research\.google\.com/[^\s)\"]+", text) == [link]


def test_set_up_installs_the_given_address_only_when_explr_is_missing():
    source = notebooks.set_up_source(URL)
    extras = re.search(rf'%pip install -q "explr\[([\w,]+)\] @ git\+{URL}"', source)[1].split(",")
    needed = " ".join(name for extra in extras for name in PROJECT["optional-dependencies"][extra])
    assert "torchvision" in needed and "ipywidgets" in needed and "jupyter-book" not in needed
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


def normalised(notebook, url=None):
    return notebooks.normalise(notebook, "messy.ipynb", url)


def test_normalising_drops_what_a_rerun_changes():
    notebook = normalised(messy_notebook())
    title, printing, three = notebook.cells
    assert title.source == "# Title\n\n" + notebooks.run_line("messy.ipynb", None)
    assert [cell.execution_count for cell in (printing, three)] == [2, 3]
    assert [output.data for output in three.outputs] == [{"text/plain": "3"}]  # the widget is gone, and what stood in for it
    assert three.outputs[0].execution_count == 3
    assert [output.text for output in printing.outputs] == ["one\ntwo\n"]
    assert title.metadata == printing.metadata == {} and three.metadata == {"tags": ["x"]}
    assert len({cell.id for cell in notebook.cells}) == 3 and title.id == "same"
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("url", [None, URL])
def test_normalising_twice_changes_nothing(url):
    once = notebooks.text_of(normalised(messy_notebook(), url))
    again = nbformat.v4.reads(once)
    assert notebooks.text_of(normalised(again, url)) == once


def test_an_address_adds_the_set_up_cell_and_its_absence_removes_it():
    without, with_it = (notebooks.text_of(normalised(messy_notebook(), url)) for url in (None, URL))
    set_up = nbformat.v4.reads(with_it).cells[1]
    assert (set_up.id, set_up.source, set_up.execution_count) == ("set-up", notebooks.set_up_source(URL), 1)
    assert notebooks.text_of(normalised(nbformat.v4.reads(with_it))) == without
    assert notebooks.text_of(normalised(nbformat.v4.reads(without), URL)) == with_it


def test_a_notebook_without_a_title_is_refused():
    notebook = messy_notebook()
    del notebook.cells[0]
    with pytest.raises(ValueError, match="begins with its title"):
        normalised(notebook)


# ---- mutants

EQUIVALENT = tomllib.loads((ROOT / "tools" / "mutation.toml").read_text(encoding="utf-8"))["equivalent"]


@pytest.mark.parametrize("entry", EQUIVALENT, ids=lambda entry: f"{entry['module']}-{entry['function']}")
def test_a_mutant_that_is_known_to_be_equivalent_is_of_a_line_that_is_there(entry):
    path = ROOT / f"{entry['module'].replace('.', '/')}.py"
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    assert entry["was"] != entry["now"] and len(entry["why"]) > 5
    assert all(line in lines for line in entry["was"].splitlines())
