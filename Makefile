# The commands of this book. Each sets up what it needs (a virtual environment
# in .venv, the pinned packages, this project editable) and then does its job;
# the second call skips the set-up. A Python >= 3.11, make and a network to a
# package index are enough; GNU make 3.81, which macOS ships, will do.
#
#   PYTHON=python3.12   the Python that .venv is made with (default: python3)
#   TORCH_INDEX=URL     where torch is taken from, say an index of CPU builds;
#                       by default the index that pip uses, which on Linux
#                       brings gigabytes of CUDA
#   ADDR, PORT          where `make serve` serves (default: 127.0.0.1:8000)
#   SITE                where `make build` writes (default: site)
#   JOBS                in how many processes `make test` runs pages and tests (2)
#   UPGRADE=1           lets `make lock` take newer versions
#
# TORCH_INDEX and the others can be set in the environment too.

PYTHON ?= python3
TORCH_INDEX ?=
ADDR ?= 127.0.0.1
PORT ?= 8000
SITE ?= site
JOBS ?= 2
UPGRADE ?=

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
READY := $(VENV)/.ready

# MkDocs 1.x and Material are pinned and a successor is planned for: the banner
# about MkDocs 2 tells a reader of this book nothing.
export NO_MKDOCS_2_WARNING = 1

# Where the Python that .venv links to has vanished, the stamp means nothing, and
# .venv is made again.
_ := $(shell test -x $(PY) || rm -f $(READY))

.PHONY: help serve test update page build bench matrix lock vendor picture clean
.NOTPARALLEL:

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: $(READY) ## run the pages, then serve the book, rebuilding on change
	$(PY) -m pytest docs -q
	$(PY) -m mkdocs serve --dev-addr $(ADDR):$(PORT)

# The pages come first, for the site is built from what they left; then the tests,
# both in JOBS processes. What is said at the end is how they went.
test: $(READY) ## run everything that CI runs
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest -q -n $(JOBS) --dist loadfile README.md CONTRIBUTING.md docs attention
	$(PY) -m pytest -n $(JOBS) --dist loadfile tests

update: page $(READY) ## rewrite the outputs of PAGE=docs/....md from its code
	$(PY) -m pytest $(PAGE) --update

page:
	@test -n "$(PAGE)" || { echo 'Which page? Say: make update PAGE=docs/foundations/similarity.md' >&2; exit 2; }

build: $(READY) ## run the pages, build the site into site/, hold it against them
	$(PY) -m pytest docs -q
	$(PY) -m mkdocs build --strict --site-dir $(SITE)
	$(PY) -m snippets.gate $(SITE)

bench: $(READY) ## measure again what pages show of the running task and the kernels
	$(PIP) install --quiet --constraint constraints.txt --editable '.[bench]'
	$(PY) -m benchmarks.recall
	$(PY) -m benchmarks.kernels
	$(PY) -m benchmarks.compiled

# Not $(READY): the pins may be what keeps the set-up from finishing. The header
# of constraints.txt, up to its first empty line, stays.
lock: $(PY) ## write constraints.txt anew from pyproject.toml
	$(PIP) install --quiet --constraint constraints.txt uv
	@sed '/^$$/q' constraints.txt > $(VENV)/constraints.txt
	$(PY) -m uv pip compile pyproject.toml --all-extras --universal \
	    --python-version 3.11 --fork-strategy fewest $(if $(UPGRADE),--upgrade) \
	    --no-header --quiet --output-file constraints.txt
	@cat constraints.txt >> $(VENV)/constraints.txt
	@mv $(VENV)/constraints.txt constraints.txt

matrix: $(READY) ## run the conformance matrix and write what its page shows
	$(PY) -m tests.conformance

vendor: $(READY) ## fetch KaTeX and Source Serif 4 again (needs npm)
	$(PY) tools/vendor.py

picture: $(READY) ## draw the picture of the README again
	$(PY) -m snippets.picture

clean: ## remove what the commands made, except .venv
	rm -rf site .book .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find attention docs snippets tests tools \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
	find docs -path '*/figures/*.svg' -delete

# --- set-up -----------------------------------------------------------------

# torch goes first and alone: pip would otherwise ask TORCH_INDEX for all the
# other packages too. Its dependencies come with the second line, pinned. The
# stamp is taken away before and made after, so an interrupted set-up leaves
# none.
$(READY): $(PY) pyproject.toml constraints.txt
	@rm -f $@
	@echo 'Setting up $(VENV), which takes a few minutes the first time ...'
	$(PIP) install --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) \
	    "$$(sed -n 's/^\(torch==[^ ;]*\).*/\1/p' constraints.txt)"
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(PY):
	@command -v '$(PYTHON)' >/dev/null || { \
	    echo 'No $(PYTHON) here. The book needs Python 3.11 or newer; PYTHON=... says which.' >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "$(PYTHON) is $$('$(PYTHON)' -V 2>&1). The book needs 3.11 or newer; PYTHON=... says which." >&2; exit 1; }
	@'$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo '$(PYTHON) cannot make virtual environments: install venv (Debian and Ubuntu: python3-venv).' >&2; exit 1; }
	'$(PYTHON)' -m venv --clear $(VENV)
