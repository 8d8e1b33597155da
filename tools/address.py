"""Keep the repository's public address in step, or its absence.

It is stated once, as ``[project.urls] Repository`` in pyproject.toml, or not at all. Other files cannot read it there, and
say one thing with an address and another without: PLACES has both. (The notebooks' heads are written by tools.notebooks.)

    python -m tools.address                                    check, and say what is out of step
    python -m tools.address https://github.com/me/explr        set or change the address everywhere
    python -m tools.address none                               take it away again
    python -m tools.address --is https://github.com/me/explr   check, and fail unless this is the address

A fork has another address, and a page that is read before there is one must not offer a command that cannot work.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
URL = r"https://github\.com/[\w-]+/[\w.-]+"

_URLS = """\
[project.urls]
# The one place where the public address is stated, once there is one: make address URL=https://github.com/me/explr
"""
_BUTTONS = "# The repository, and the buttons that lead to it, stand here once it has an address (tools/address.py).\n"
_PICTURE = '      "property=og:image": {}\n'
_CHECKOUT = "In a checkout of the repository:\n\n```sh\n"
_CLONE = "```sh\ngit clone {url} explr && cd explr\n"
_COLAB = """
Without installing anything: every chapter has a Colab link at the top. Its first cell installs `explr` there and leaves
Colab's PyTorch as it is.
"""
_LAB = "`make lab` opens the chapters in JupyterLab, in the same environment, with live sliders where a page shows a still.\n"

# (file, what it says without an address, what it says with one)
PLACES = [
    ("pyproject.toml", _URLS, _URLS + 'Repository = "{url}"\n'),
    ("CITATION.cff", "license: MIT\n", "license: MIT\nrepository-code: {url}\n"),
    (
        "_config.yml",
        _BUTTONS + "html:\n",
        _BUTTONS
        + """\
repository:
  url: {url}
  branch: main
  path_to_book: ""  # pages are named from the repository's root, "book/" included

launch_buttons:
  colab_url: https://colab.research.google.com

html:
  use_repository_button: true
  use_issues_button: true
  use_edit_page_button: true
""",
    ),
    ("_config.yml", _PICTURE.format("../_static/preview.png"), _PICTURE.format("{url}/raw/main/book/_static/preview.png")),
    ("README.md", _CHECKOUT, _CLONE),
    ("README.md", "pip install .   # in a checkout of the repository\n", 'pip install "explr @ git+{url}"\n'),
    ("book/reproduce.md", _CHECKOUT, _CLONE),
    ("book/reproduce.md", _LAB, _LAB + _COLAB),
    (
        "book/intro.md",
        "open a chapter with `make lab` (see below), and run it from top to bottom.\n",
        "open a chapter in Colab with the button at the top of its page, and run it from top to bottom; the first cell\n"
        "installs the library there.\n",
    ),
]


def address(root: Path = ROOT) -> str | None:
    """Return the address that pyproject.toml states, if it states one."""
    stated = re.search(rf'^Repository = "({URL})"$', (root / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    return stated[1] if stated else None


def _places(url: str | None, root: Path) -> Iterator[tuple[Path, re.Pattern[str], str]]:
    """Yield each file, a pattern for what its place says in either state and of any address, and what it should say."""
    for name, without, with_address in PLACES:
        said = re.compile(re.escape(with_address).replace(re.escape("{url}"), URL) + "|" + re.escape(without))
        yield root / name, said, with_address.replace("{url}", url) if url else without


def out_of_step(root: Path = ROOT) -> list[str]:
    """Describe each place that does not say what it should."""
    complaints = []
    for path, said, expected in _places(address(root), root):
        if said.findall(path.read_text(encoding="utf-8")) != [expected]:
            complaints.append(f"{path.relative_to(root)} should say, once:\n{expected}")
    return complaints


def change(new: str, root: Path = ROOT) -> None:
    """Make ``new`` the address in every place, or take it away if it is "none"."""
    valid = re.fullmatch(r"(https://github\.com/[\w-]+/[\w.-]+?)(?:\.git|/)?|none", new)
    if valid is None:
        raise SystemExit(f"not the address of a GitHub repository: {new}. It looks like https://github.com/me/explr")
    for path, said, expected in _places(valid[1], root):
        path.write_text(expected.join(said.split(path.read_text(encoding="utf-8"))), encoding="utf-8")


def main() -> int:
    """Run the command line; return 1 where something is out of step."""
    parser = argparse.ArgumentParser(description="Check, set or remove the repository's public address.")
    parser.add_argument("url", nargs="?", help='the new address, or "none"; without it, only check')
    parser.add_argument("--is", dest="expected", metavar="URL", help="fail unless this is the stated address")
    options = parser.parse_args()
    if options.url:
        change(options.url)
    stated = address()
    complaints = out_of_step()
    if options.expected and options.expected.lower() != str(stated).lower():  # GitHub ignores case
        complaints.append(
            f"this repository is {options.expected}, but pyproject.toml states {stated or 'no address'}.\n"
            f"Run: make address URL={options.expected}, and commit what it changes."
        )
    known = f"The address is {stated}, everywhere." if stated else "No address is set, and nothing asks for one."
    print("\n".join(complaints) or known)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
