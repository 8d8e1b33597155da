"""Keep the repository's public address in step.

It is stated once, as ``[project.urls] Repository`` in pyproject.toml. Files that cannot read it there repeat it: the
book's configuration, the citation, the notebooks' set-up cells and Colab links, the README. This tool checks the
copies, and given a new address rewrites them all:

    python -m tools.address                                    check, and name each copy that is out of step
    python -m tools.address https://github.com/me/explr        change the address everywhere
    python -m tools.address --is https://github.com/me/explr   check, and fail unless this is the address

A fork has another address, and nobody should pip-install from one that a stranger could register. Until the address is
known its owner is PLACEHOLDER, which GitHub cannot give to anyone: it is longer than the 39 characters of an account.
"""

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACEHOLDER = "this-address-is-not-set-run-make-address"

OWNER_AND_NAME = r"(?P<slug>[\w-]+/[\w.-]*[\w-]+?)(?=\.git\b|[^\w.-]|\.?$|\.\s)"
STATED = re.compile(r'(?P<before>^Repository = "https://github\.com/)' + OWNER_AND_NAME, re.MULTILINE)
# In the files below these forms always mean this repository, whatever address they give.
COPY = re.compile(
    r"(?P<before>git\+https://github\.com/|git clone https://github\.com/|^\s*(?:url|repository-code): https://github\.com/"
    r"|https://colab\.research\.google\.com/github/)" + OWNER_AND_NAME,
    re.MULTILINE,
)


def files_with_copies(root: Path = ROOT) -> list[Path]:
    """Return the files that repeat the address."""
    named = ["_config.yml", "CITATION.cff", "README.md", "CONTRIBUTING.md", "book/reproduce.md"]
    return [root / name for name in named] + sorted((root / "book").glob("*.ipynb"))


def address(root: Path = ROOT) -> str:
    """Return the address that pyproject.toml states."""
    stated = STATED.search((root / "pyproject.toml").read_text(encoding="utf-8"))
    if stated is None:
        raise SystemExit('pyproject.toml states no address: [project.urls] needs Repository = "https://github.com/..."')
    return "https://github.com/" + stated["slug"]


def out_of_step(root: Path = ROOT) -> list[str]:
    """Describe each copy that differs from the stated address, and each file that ought to have one and has none."""
    slug = address(root).removeprefix("https://github.com/")
    complaints = []
    for path in files_with_copies(root):
        copies = [copy["slug"] for copy in COPY.finditer(path.read_text(encoding="utf-8"))]
        name = path.relative_to(root)
        complaints += [f"{name} says {copy}, pyproject.toml says {slug}" for copy in copies if copy != slug]
        if not copies:
            complaints.append(f"{name} does not give the repository's address")
    return complaints


def change(new: str, root: Path = ROOT) -> None:
    """Write ``new`` into pyproject.toml and over every copy."""
    valid = re.fullmatch(r"https://github\.com/([\w-]+/[\w.-]+?)(?:\.git|/)?", new)
    if valid is None:
        raise SystemExit(f"not the address of a GitHub repository: {new}. It looks like https://github.com/me/explr")
    slug = valid[1]
    for path, pattern in [(root / "pyproject.toml", STATED), *((path, COPY) for path in files_with_copies(root))]:
        text = path.read_text(encoding="utf-8")
        path.write_text(pattern.sub(lambda found: found["before"] + slug, text), encoding="utf-8")


def main() -> int:
    """Run the command line; return 1 where something is out of step."""
    parser = argparse.ArgumentParser(description="Check or change the repository's public address.")
    parser.add_argument("url", nargs="?", help="the new address; without it, only check")
    parser.add_argument("--is", dest="expected", metavar="URL", help="fail unless this is the stated address")
    options = parser.parse_args()
    if options.url:
        change(options.url)
    complaints = out_of_step()
    if options.expected and options.expected.lower() != address().lower():  # GitHub ignores case
        complaints.append(
            f"this repository is {options.expected}, but the book's links and set-up cells lead to {address()}.\n"
            f"Run: make address URL={options.expected}, and commit what it changes."
        )
    print("\n".join(complaints) if complaints else f"The address is {address()}, everywhere.")
    if PLACEHOLDER in address():
        print("It is a placeholder. Set it with: make address URL=https://github.com/me/explr")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
