"""Run notebooks of the book in an environment like Google Colab's, with nothing of ours in it but the wheel.

    python -m tools.colab                  make the environment, see what the set-up cell would change, run all notebooks
    python -m tools.colab book/x.ipynb     run these only

What Colab has installed is published (github.com/googlecolab/backend-info); ``COLAB`` is what of it matters here, as of June
2026. Python and torch are those of this machine: Colab's own need hours to fetch. Sliders are live, as they are there.
"""

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.address import ROOT

HOME = ROOT / "_build" / "colab"
COLAB = {
    "torch": "2.11.0",
    "torchvision": "0.26.0",
    "numpy": "2.0.2",
    "scipy": "1.16.3",
    "matplotlib": "3.10.0",
    "ipywidgets": "7.7.1",
    "pillow": "11.3.0",
    "tqdm": "4.67.3",
    "platformdirs": "4.10.0",
    "filelock": "3.29.0",
    "ipykernel": "6.17.1",
    "ipython": "7.34.0",
    "jupyter_client": "7.4.9",
    "traitlets": "5.7.1",
    "nbclient": "0.10.4",
    "nbformat": "5.10.4",
}
LENT = ("torch", "torchvision")  # by the environment that runs this; they are large
STAY = ("torch", "torchvision", "numpy", "scipy", "matplotlib", "ipywidgets")  # what a cell of ours must not touch there
EXECUTE = """
import sys, nbclient, nbformat, explr, ipywidgets, matplotlib, numpy, torch
print("explr from", explr.__file__)
print("numpy", numpy.__version__, "ipywidgets", ipywidgets.__version__, "torch", torch.__version__)
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=1200, kernel_name="python3").execute()
"""


def make_environment() -> str:
    """Make the environment, or find it made; return its Python."""
    python = HOME / "bin" / "python"
    if not (HOME / ".made").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", HOME], check=True)
        subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "setuptools"], check=True)  # torch brings its own
        asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
        site = subprocess.run([python, "-c", asked], check=True, capture_output=True, text=True).stdout.strip()
        lend(Path(site))
        wanted = [f"{name}=={version}" for name, version in COLAB.items() if name not in LENT]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
        (HOME / ".made").touch()
    return str(python)


def lend(site: Path) -> None:
    """Link torch and all that it needs, but what Colab has in a version of its own, with its metadata, so that pip sees it."""
    waiting = [(name, "") for name in LENT]
    seen: set[tuple[str, str]] = set()
    while waiting:
        name, extra = waiting.pop()
        seen.add((name, extra))
        asked = [Requirement(text) for text in importlib.metadata.requires(name) or []]
        for one in asked:
            needed = canonicalize_name(one.name)
            if (one.marker is None or one.marker.evaluate({"extra": extra})) and needed not in COLAB and installed(needed):
                waiting += [pair for part in ("", *one.extras) if (pair := (needed, part)) not in seen]
    lent = {name for name, _ in seen}
    own = Path(sysconfig.get_path("purelib"))
    for top in {file.parts[0] for name in lent for file in importlib.metadata.files(name) or []} - {"..", "__pycache__"}:
        (site / top).symlink_to(own / top)


def installed(name: str) -> bool:
    """Say whether this environment has a package; one for GPUs may be absent where torch is for CPUs."""
    try:
        return bool(importlib.metadata.files(name))
    except importlib.metadata.PackageNotFoundError:
        return False


def would_change(python: str, wheel: Path) -> dict[str, str]:
    """Return what pip would install for the set-up cell's requirement: name → version, explr itself apart."""
    requirement = f"explr[experiments,figures] @ {wheel.as_uri()}"
    command = [python, "-m", "pip", "install", "--quiet", "--dry-run", "--report", "-", requirement]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    found = {item["metadata"]["name"].lower(): item["metadata"]["version"] for item in report["install"]}
    found.pop("explr", None)  # not in the list if this version is there already
    return found


def main() -> int:
    """Run the command line; return 1 where the set-up cell would change what it must not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted((ROOT / "book").glob("*.ipynb")))
    chosen = parser.parse_args().notebooks
    python = make_environment()
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "EXPLR_STATIC")}
    os.environ.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, str(ROOT)], check=True)
        (wheel,) = Path(folder).glob("explr-*.whl")
        changes = would_change(python, wheel)
        print("beside explr, the set-up cell would install", changes or "nothing")
        if touched := sorted(set(STAY) & changes.keys()):
            print(f"it must not change {', '.join(touched)}")
            return 1
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--force-reinstall", "--no-deps", wheel], check=True)
        for path in chosen:
            copy = shutil.copy(path, folder)  # far from the checkout, whose explr must not be found
            print(f"executing {path.name}", flush=True)
            subprocess.run([python, "-c", EXECUTE, copy], check=True, cwd=folder, env=environment)
    return 0


if __name__ == "__main__":
    sys.exit(main())
