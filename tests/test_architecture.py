"""The folder shows the architecture: imports go down, names are light to import, and what is installed is enough."""

import subprocess
import sys

import pytest

import explr
from tools import architecture

PROBE = """
import sys
from importlib.machinery import PathFinder
class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition('.')[0] in {absent} else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
{code}
"""
EXTRAS = ("torchvision", "PIL", "tqdm", "platformdirs", "matplotlib", "ipywidgets")


def python_without(absent, code):
    """Run code where some packages cannot be imported; return what it prints, and its error."""
    command = [sys.executable, "-c", PROBE.format(absent=set(absent) or "()", code=code)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout, done.stderr


def test_every_import_goes_down():
    assert architecture.faults(architecture.imports(architecture.ROOT / "explr")) == []


def test_the_picture_is_what_the_imports_say():
    assert architecture.PAGE.read_text(encoding="utf-8") == architecture.page(), "run python -m tools.architecture"


@pytest.mark.parametrize(
    "file, line, fault",
    [
        ("invariance/rules.py", "from explr.optim import ExpLR", "invariance.rules imports optim"),
        ("equivalence.py", "import explr.experiments.data", "equivalence imports experiments.data"),
        ("experiments/data.py", "from explr.book import plots", "experiments.data imports book.plots"),
        ("invariance/rules.py", "from explr import ExpLR", "invariance.rules imports optim"),
        ("invariance/rules.py", "from explr import train", "invariance.rules imports experiments.training"),
        ("equivalence.py", "from explr import data", "equivalence imports experiments.data"),
        ("invariance/rules.py", "from explr.invariance import scale_invariance", "imports itself"),
        ("invariance/graph.py", "def late():\n    from explr.invariance.degrees import combine", "imports itself"),
    ],
)
def test_an_import_that_climbs_is_found(file, line, fault, tmp_path):
    package = tmp_path / "explr"
    for source in (architecture.ROOT / "explr").rglob("*.py"):
        target = package / source.relative_to(architecture.ROOT / "explr")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    assert architecture.faults(architecture.imports(package)) == []
    (package / file).write_text((package / file).read_text(encoding="utf-8") + f"\n{line}\n", encoding="utf-8")
    assert any(fault in found for found in architecture.faults(architecture.imports(package)))


def test_every_public_name_is_found_typed_and_listed(tmp_path):
    assert set(explr._HOME) == set(explr.__all__) <= set(dir(explr))
    for name in explr.__all__:
        value = getattr(explr, name)
        assert (getattr(value, "__module__", None) or value.__name__).startswith(explr._HOME[name])
    typed = "import explr\nfrom explr.data import synthetic\nfrom explr.models import preresnet32\n"
    typed += "".join(f"reveal_type(explr.{name})\n" for name in explr.__all__ if name not in ("data", "models", "schedules"))
    (tmp_path / "user.py").write_text(typed, encoding="utf-8")
    mypy = [sys.executable, "-m", "mypy", "--strict", str(tmp_path / "user.py")]
    done = subprocess.run(mypy, capture_output=True, text=True, cwd=architecture.ROOT)
    revealed = [line for line in done.stdout.splitlines() if "Revealed type" in line]
    assert done.returncode == 0 and len(revealed) == typed.count("reveal_type"), done.stdout
    assert [line for line in revealed if line.endswith('"Any"')] == []
    with pytest.raises(AttributeError, match="nothing"):
        explr.nothing  # noqa: B018


def test_names_that_users_import_are_the_same_however_they_import_them():
    code = "import explr; first = explr.models; import explr.models; from explr.experiments.models import preresnet32; "
    code += "print(explr.models is first, first.preresnet32 is preresnet32, explr.data.synthetic(train=1, test=1).name)"
    out, error = python_without((), code)
    assert out.startswith("True True synthetic"), error


def test_numbers_need_neither_torch_nor_any_extra():
    code = "import explr; print(explr.convert([0.1] * 3, 5e-4, 0.9).log_lr.shape); print('torch' in sys.modules)"
    assert python_without((*EXTRAS, "torch", "scipy"), code) == ("(3,)\nFalse\n", "")
    code = "from explr.__main__ import main; main(['convert', '--lr', '0.1', '--weight-decay', '5e-4'])"
    out, error = python_without((*EXTRAS, "torch", "scipy"), code)
    assert "growth per step" in out, error


@pytest.mark.parametrize("command", [["run", "figure5"], ["run", "--help"]])
def test_the_command_that_needs_an_extra_says_so_in_one_line(command):
    out, error = python_without(EXTRAS, f"from explr.__main__ import main; sys.exit(main({command}))")
    assert out == "" and error.count("\n") == 1 and "pip install '.[experiments]'" in error, error


def test_networks_need_no_extra():
    code = """
import explr, torch
from torch.nn.functional import cross_entropy
model = explr.models.preresnet(depth=8, width=4)
report = explr.scale_invariance(model, torch.randn(2, 3, 32, 32))
optimizer = torch.optim.SGD(report.parameter_groups(lr=0.1, weight_decay=5e-4), lr=0.1)
explr.ExpLR(optimizer, model=model, renormalize=True)
print(report.invariant, explr.lemma1(model, cross_entropy, torch.randn(2, 3, 32, 32), torch.arange(2)).factor)
"""
    assert python_without(EXTRAS, code) == ("True 2.0\n", "")


@pytest.mark.parametrize(
    "absent, code, extra",
    [
        ("PIL", "import explr; explr.data", "experiments"),
        ("tqdm", "import explr; explr.train", "experiments"),
        ("torchvision", "import explr; explr.data.cifar10('/nowhere')", "experiments"),
        ("filelock", "from explr.experiments import catalogue", "experiments"),
        ("matplotlib", "from explr.book import plots", "figures"),
        (
            "ipywidgets",
            "from explr.book.widgets import explore; import os; os.environ.pop('EXPLR_STATIC', 0); explore(print)",
            "figures",
        ),
    ],
)
def test_a_missing_extra_is_one_error_that_names_it(absent, code, extra):
    _, error = python_without([absent], code)
    last = error.splitlines()[-1]
    assert (
        last
        == f"explr.errors.ExplrError: {absent} is not installed: pip install '.[{extra}]' in a checkout of explr brings it."
    )
