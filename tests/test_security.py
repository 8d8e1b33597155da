"""Nothing that explr reads can run code: the source is walked for everything that could."""

import ast
from pathlib import Path

import numpy as np
import pytest

from explr.experiments.data import _read_cache

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(path for folder in ("explr", "tools", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
SAFE = {"load": {"torch": ("weights_only", True), "np": ("allow_pickle", False), "numpy": ("allow_pickle", False)}}


def unsafe(source):
    """Return what in a source could run code that comes from a file or a user, with its line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found += [(node.lineno, f"import {name}") for name in names if name.partition(".")[0] in MODULES]
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in {"eval", "exec", "compile", "__import__"}:
            found.append((node.lineno, node.func.id))
        elif isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            owner, name = node.func.value.id, node.func.attr
            if owner == "yaml" and name != "safe_load":
                found.append((node.lineno, f"yaml.{name}"))
            if (owner, name) in {("os", "system"), ("os", "popen")}:
                found.append((node.lineno, f"{owner}.{name}"))
            if owner in SAFE.get(name, {}):
                option, value = SAFE[name][owner]
                given = {keyword.arg: keyword.value for keyword in node.keywords}.get(option)
                if not (isinstance(given, ast.Constant) and given.value is value):
                    found.append((node.lineno, f"{owner}.{name} without {option}={value}"))
            if owner == "subprocess" and any(k.arg == "shell" for k in node.keywords):
                found.append((node.lineno, f"subprocess.{name} with a shell"))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_can_run_code(path):
    assert unsafe(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import loads",
        "eval('1')",
        "exec(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_that_walk_sees_what_could(source):
    assert len(unsafe(source)) == 1


def test_a_cache_of_images_that_is_a_pickle_is_not_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    path = tmp_path / "images.npy"
    np.save(path, np.array([Bomb()], dtype=object), allow_pickle=True)
    assert _read_cache(path, 1) is None
    assert not (tmp_path / "exploded").exists()


def test_the_policy_says_what_the_command_imports():
    policy = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert "explr check MODULE:CALLABLE" in policy and "weights_only=True" in policy
