"""What is built can be published, is whole, and works where nothing else of this checkout is."""

import hashlib
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 1_000_000  # bytes of the wheel; most of it are the records, which compress well

USE = """
import explr
from explr.experiments.catalogue import best_records, results_folder
assert "site-packages" in explr.__file__, explr.__file__
assert results_folder().parent.name == "explr", results_folder()
runs, words = best_records("figure5")
print(sorted(runs)[0], len(explr.convert([0.1] * 5, 5e-4)), explr.models.preresnet(depth=8, width=4).head.out_features)
"""


def run(*command, cwd, **options):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the source distribution from the checkout, and the wheel from what the source distribution holds."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(folder), cwd=ROOT)
    (source,) = folder.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(folder / "source", filter="data")
    (unpacked,) = (folder / "source").iterdir()
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=unpacked)
    (built,) = folder.glob("*.whl")
    return built


def test_both_distributions_can_be_published(wheel):
    files = [str(path) for path in wheel.parent.iterdir() if path.is_file()]
    assert len(files) == 2
    run(sys.executable, "-m", "twine", "check", "--strict", *files, cwd=wheel.parent)


def test_the_wheel_has_every_module_and_every_record_once(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        digests = [hashlib.sha256(archive.read(name)).digest() for name in names if name.endswith(".json")]
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "explr").rglob("*.py")}
    tracked = run("git", "ls-files", "book/results", cwd=ROOT).split() if (ROOT / ".git").exists() else []
    records = {f"explr/{name.removeprefix('book/')}" for name in tracked}
    assert modules | {"explr/py.typed"} | records <= set(names)
    assert len(digests) == len(set(digests))
    assert wheel.stat().st_size < LIMIT, f"{wheel.stat().st_size} bytes"


def test_the_wheel_works_where_nothing_else_of_the_checkout_is(wheel, tmp_path):
    """In an environment of its own, which borrows torch and its like from this one but not its explr."""
    venv.create(tmp_path / "env", with_pip=False, symlinks=os.name != "nt")
    python = str(tmp_path / "env" / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(python, "-c", where, cwd=tmp_path, env=clean).strip())
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    assert run(python, "-c", USE, cwd=tmp_path, env=clean).split() == ["decay", "5", "10"]
