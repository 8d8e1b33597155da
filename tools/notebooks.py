"""Keep the notebooks in one form, so that running one again changes nothing but outputs that really changed.

    python -m tools.notebooks              normalise every notebook of the book
    python -m tools.notebooks --check      name those that are not normalised, and fail
    python -m tools.notebooks --execute    execute each in its own folder, then normalise it

Paths after the options limit it to these notebooks. Normalising drops timings, widget state and whatever else an editor
leaves behind, numbers the cells from top to bottom, and writes the line that says how to run the notebook (``run_line``)
and, once the repository has a public address, the cell that installs explr from there (``set_up_source``).
"""

import argparse
import hashlib
import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat

from tools.address import ROOT, address

Notebook = Any  # nbformat has no types
SET_UP_ID = "set-up"
RUN = "Run it: "  # so begins the second paragraph of every notebook
CELL_METADATA = {"tags", "mystnb"}  # the rest is an editor's memory of how a cell was last shown
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"  # names a live kernel's object by a random number
VALID_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def set_up_source(url: str) -> str:
    """Return the first code cell of every notebook: on a machine without explr, such as Colab's, it installs it."""
    return (
        "try:\n"
        "    import explr\n"
        "except ModuleNotFoundError:  # on Colab: torch is already there, and stays as it is\n"
        f'    %pip install -q "explr[experiments,figures] @ git+{url}"\n'
        "    import explr"
    )


def colab_link(name: str, url: str) -> str:
    """Return the address at which Colab opens a notebook of the book."""
    return f"{url.replace('https://github.com/', 'https://colab.research.google.com/github/')}/blob/main/book/{name}"


def run_line(name: str, url: str | None) -> str:
    """Return the line below a notebook's title, which says how to run it."""
    if url is None:
        return f"{RUN}`make lab` in a checkout of the repository opens JupyterLab, where this page is `{name}`."
    return f"{RUN}[open this page in Colab]({colab_link(name, url)}), or open `{name}` in JupyterLab with `make lab`."


def normalise(notebook: Notebook, name: str, url: str | None) -> Notebook:
    """Bring the notebook of this file name into the one form, in place; ``url`` is the repository's address, if it has one."""
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python", "pygments_lexer": "ipython3"},
        }
    )
    _place_run_line(notebook, run_line(name, url))
    notebook.cells = [cell for cell in notebook.cells if cell.get("id") != SET_UP_ID]
    taken: set[str] = set()
    count = 1  # the set-up cell's, there or not, so that an address does not renumber every cell
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({key: cell.metadata[key] for key in CELL_METADATA & cell.metadata.keys()})
        cell.id = _stable_id(cell, taken)
        if cell.cell_type == "code":
            count += bool(cell.source.strip())
            cell.execution_count = count if cell.source.strip() else None
            outputs = [output for output in cell.outputs if WIDGET_VIEW not in output.get("data", {})]
            cell.outputs = [_normalise_output(output, count) for output in _joined(outputs)]
    if url is not None:
        _insert_set_up(notebook, url)
    return notebook


def _place_run_line(notebook: Notebook, line: str) -> None:
    head = notebook.cells[0]
    if not (head.cell_type == "markdown" and head.source.startswith("# ")):
        raise ValueError(f"a notebook begins with its title, in Markdown; this one with {head.source[:40]!r}")
    title, _, rest = head.source.partition("\n\n")
    if rest.startswith(RUN):
        _, _, rest = rest.partition("\n\n")
    head.source = "\n\n".join(filter(None, (title, line, rest)))


def _insert_set_up(notebook: Notebook, url: str) -> None:
    first = next((i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"), len(notebook.cells))
    about = {"id": SET_UP_ID, "execution_count": 1, "metadata": {"tags": ["hide-cell"]}}
    notebook.cells.insert(first, nbformat.v4.new_code_cell(set_up_source(url), **about))


def _stable_id(cell: Notebook, taken: set[str]) -> str:
    """Keep a cell's id; where it has none that is valid and its own, derive one from its text."""
    wanted = cell.get("id", "")
    if not VALID_ID.fullmatch(wanted) or wanted in taken:
        wanted, number = hashlib.sha1(cell.source.encode()).hexdigest()[:8], 1
        while wanted in taken:
            number += 1
            wanted = f"{wanted[:8]}-{number}"
    taken.add(wanted)
    return str(wanted)


def _joined(outputs: list[Notebook]) -> list[Notebook]:
    """Join what a cell printed: in how many pieces it arrived is chance."""
    joined: list[Notebook] = []
    for output in outputs:
        last = joined[-1] if joined else None
        if last and output.output_type == "stream" and last.output_type == "stream" and last.name == output.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


def _normalise_output(output: Notebook, count: int) -> Notebook:
    if output.output_type == "execute_result":
        output.execution_count = count
    return output


def read(path: Path) -> Notebook:
    """Read a notebook as it is; nbformat.read would give cells without an id of their own a random one."""
    return nbformat.v4.reads(path.read_text(encoding="utf-8"))


def text_of(notebook: Notebook) -> str:
    """Return a notebook as the text of its file: keys sorted, one newline at the end."""
    return str(nbformat.writes(notebook)).rstrip("\n") + "\n"


def execute(notebook: Notebook, folder: Path) -> None:
    """Run a notebook from top to bottom in a fresh kernel, in ``folder``."""
    from nbclient import NotebookClient

    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("EXPLR_STATIC", "1")
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()


def main() -> int:
    """Run the command line; return 1 where --check finds a notebook that is not normalised."""
    parser = argparse.ArgumentParser(description="Normalise, check or execute the book's notebooks.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a notebook is not normalised")
    parser.add_argument("--execute", action="store_true", help="execute each notebook first")
    parser.add_argument("paths", nargs="*", type=Path, help="notebooks; without any, every one of the book")
    options = parser.parse_args()
    url, failed = address(), False
    for path in options.paths or sorted((ROOT / "book").glob("*.ipynb")):
        before = path.read_text(encoding="utf-8")
        notebook = read(path)
        if options.execute:
            print(f"executing {path}", flush=True)
            execute(notebook, path.parent)
        after = text_of(normalise(notebook, path.name, url))
        if options.check and after != before:
            print(f"{path} is not normalised: run `make format`")
            failed = True
        elif after != before:
            path.write_text(after, encoding="utf-8")
            print(f"{path} written")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
