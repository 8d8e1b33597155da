# Two commands do everything on a machine with only Python and make: `make book` and `make test`.
# Both work in a fresh clone, in either order, and use one virtual environment, .venv, made on first use.

PYTHON ?= python3
OLDEST ?= python3.10

BIN := .venv/bin
VENV := .venv/.installed
KEY := _build/.execution-key

# Two test processes with one thread each: two that each start a thread per core take nearly three times as long.
PARALLEL := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

# Progress bars would end up in the notebooks' outputs.
export TQDM_DISABLE := 1

# Sliders that a kernel must answer would be dead on a page: explr.book.widgets.explore draws a still instead.
export EXPLR_STATIC := 1

.DEFAULT_GOAL := help
.PHONY: help test test-notebooks test-libraries test-oldest coverage mutation test-colab audit book check-book print lab notebooks format address clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1	/' | expand -t 16

# Everything that is installed follows from pyproject.toml; explr itself is installed in place, so edits need no reinstall.
$(VENV): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
	  { echo "explr needs Python 3.10 or later, but $(PYTHON) --version says: $$($(PYTHON) --version 2>&1)." \
	    "Name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; } # on Debian, venv may say that python3-venv is missing
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[book,test]'
	@touch $@

test: $(VENV) ## lint, types, unit and property tests, doctests, then every notebook against its committed outputs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PARALLEL) -m "not browser" --doctest-modules explr tests
	@$(MAKE) --no-print-directory test-notebooks

test-notebooks: $(VENV) ## every notebook against its committed outputs, which hold on CIFAR-10 and on generated images
	$(PARALLEL) --nbval-lax --nbval-sanitize-with tests/nbval.cfg book

test-libraries: $(VENV) ## the training loops of Lightning, Accelerate, Transformers and timm under ExpLR; installs them
	$(BIN)/python -m pip install --quiet --editable '.[libraries]'
	$(PARALLEL) tests/libraries

# uv, which pip is not, can install the lowest versions that satisfy pyproject.toml.
test-oldest: ## the library's tests on the oldest Python and packages that it allows (OLDEST=python3.10); makes that environment
	$(OLDEST) -m venv _build/oldest
	_build/oldest/bin/python -m pip install --quiet uv
	_build/oldest/bin/uv pip install --quiet --python _build/oldest/bin/python --resolution lowest-direct --editable '.[test]'
	OMP_NUM_THREADS=1 _build/oldest/bin/pytest -n 2 --dist loadfile -m "not browser" --ignore tests/pages --doctest-modules explr tests

coverage: $(VENV) ## lines and branches of the library that its tests reach; fails below 95 %
	$(PARALLEL) -m "not browser" --cov=explr --cov-branch --cov-report=term-missing:skip-covered --cov-fail-under=95 \
	  --doctest-modules explr tests

# tools.mutation is built on parts of mutmut that another version may not have.
mutation: $(VENV) ## wrong versions of the library's core, of which its tests must find 95 %; takes an hour or two of one core
	$(BIN)/python -m pip install --quiet mutmut==3.8.1
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.mutation $(MODULES)

test-colab: $(VENV) ## notebooks in an environment like Colab's, with nothing of ours but the wheel; makes that environment
	$(BIN)/python -m tools.colab $(NOTEBOOKS)

audit: $(VENV) ## look up what is installed among known vulnerabilities
	$(PYTHON) -m venv _build/audit
	_build/audit/bin/python -m pip install --quiet pip-audit
	_build/audit/bin/pip-audit --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" --skip-editable

# The notebooks' outputs are cached, but the cache looks at notebooks alone. It is dropped whenever anything else that
# an output can depend on has changed: the library, the stored results, an installed version, the data folder and its images.
# A build over an old one can hide warnings, so the pages are always built afresh; the notebooks they take from the cache.
book: $(VENV) ## execute every notebook and build the HTML, also as one page; fails on any warning or failing cell
	@mkdir -p _build
	@{ find explr book/results pyproject.toml -type f ! -name '*.pyc' | LC_ALL=C sort | xargs cksum; \
	   $(BIN)/python -m pip list --format=freeze; echo "data: $$EXPLR_DATA"; \
	   $(BIN)/python -c 'from explr.data import cifar10_or_synthetic as images; print(images().name)'; } > $(KEY).new
	@cmp -s $(KEY).new $(KEY) || rm -rf _build/.jupyter_cache
	@mv $(KEY).new $(KEY)
	rm -rf _build/html _build/.doctrees
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.executed _build/.jupyter_cache
	$(BIN)/jupyter-book build . --all -W -n --keep-going
	$(BIN)/python -m tools.printed _build/html
	@echo "The book is at file://$(CURDIR)/_build/html/index.html"

check-book: book ## build the book, then check what its notebooks printed, its links, images and pages in a browser
	$(BIN)/pytest -m browser tests/pages

print: $(VENV) ## the built book as one file to print, _build/explr.pdf; needs Chromium
	$(BIN)/python -m tools.printed _build/html _build/explr.pdf

lab: $(VENV) ## open the chapters in JupyterLab, with live sliders and progress bars
	env -u EXPLR_STATIC -u TQDM_DISABLE $(BIN)/jupyter lab book/01-learning-rates.ipynb

notebooks: $(VENV) ## execute every notebook in place, and normalise it; what `git diff` then shows has changed
	$(BIN)/python -m tools.notebooks --execute

format: $(VENV) ## format the code, normalise the notebooks, draw the house
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python -m tools.notebooks
	$(BIN)/python -m tools.architecture

address: $(VENV) ## check the repository's public address, or set it: make address URL=https://github.com/me/explr (or URL=none)
	$(BIN)/python -m tools.address $(URL)
	$(BIN)/python -m tools.notebooks $(if $(URL),,--check)

clean: ## remove the built book, the environment and the caches
	rm -rf _build .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
