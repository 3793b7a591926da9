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
PAGES = $(PY) -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder
TESTS = $(PY) -m pytest -n $(JOBS) --dist loadfile

# MkDocs 1.x and Material are pinned and a successor is planned for: the banner
# about MkDocs 2 tells a reader of this book nothing.
export NO_MKDOCS_2_WARNING = 1

# Where the Python that .venv links to has vanished, or the making of .venv was
# cut off before it had pip, the stamp means nothing and .venv is made again.
_ := $(shell test -e $(VENV)/.made && test -x $(PY) || rm -f $(VENV)/.made $(READY))

.PHONY: help serve port test test-all newest update page build bench matrix lock vendor picture clean
.NOTPARALLEL:

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# A page that fails on this machine is served too, and says so under its title.
serve: $(VENV)/.made port $(READY) ## run the pages, then serve the book, rebuilding on change
	@$(PAGES) docs || echo 'Some pages fail here; the book is served, and marks them.'
	$(PY) -m mkdocs serve --dev-addr $(ADDR):$(PORT)

# Asked before anything that takes minutes.
port:
	@$(PY) -c 'import socket; socket.create_server(("$(ADDR)", $(PORT))).close()' 2>/dev/null || { \
	    echo '$(ADDR):$(PORT) cannot be served at: is another program there? Say: make serve PORT=8001' >&2; exit 1; }

# The pages come first, for the site is built from what they left; then the tests,
# both in JOBS processes. What is said at the end is how they went.
test: $(READY) ## run everything that CI runs
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PAGES) README.md CONTRIBUTING.md docs attention
	$(TESTS) tests

test-all: test ## also run what is exhaustive, for an hour or more
	$(TESTS) -m exhaustive --durations 20 tests
	$(PAGES) --arithmetic all docs attention
	$(MAKE) newest

# Everything but torch and what depends on its version is pinned as always.
newest: $(READY) ## run the pages and the package with the newest torch
	$(PYTHON) -m venv --clear $(VENV)-newest
	grep -vE '^(torch|triton|nvidia-|cuda-)' constraints.txt > $(VENV)-newest/constraints.txt
	$(VENV)-newest/bin/python -m pip --disable-pip-version-check install --no-deps \
	    $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) 'torch<3'
	$(VENV)-newest/bin/python -m pip --disable-pip-version-check install --quiet \
	    --constraint $(VENV)-newest/constraints.txt --editable '.[dev]'
	$(VENV)-newest/bin/python -m pytest -n $(JOBS) --dist loadfile README.md docs attention tests \
	    --ignore tests/site

update: page $(READY) ## rewrite the outputs of PAGE=docs/....md from its code
	$(PY) -m pytest $(PAGE) --update

page:
	@test -n "$(PAGE)" || { echo 'Which page? Say: make update PAGE=docs/foundations/similarity.md' >&2; exit 2; }

build: $(READY) ## run the pages, build the site into site/, hold it against them
	$(PAGES) docs
	$(PY) -m mkdocs build --strict --site-dir $(SITE)
	$(PY) -m snippets.gate $(SITE)

bench: $(READY) ## measure again what pages show of the running task and the kernels
	$(PIP) install --quiet --constraint constraints.txt --editable '.[bench]'
	$(PY) -m benchmarks.recall
	$(PY) -m benchmarks.kernels
	$(PY) -m benchmarks.compiled

# Not $(READY): the pins may be what keeps the set-up from finishing. The header
# of constraints.txt, up to its first empty line, stays.
lock: $(VENV)/.made ## write constraints.txt anew from pyproject.toml
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
# other packages too. Its dependencies come with the last line, pinned. What
# builds the project is installed like the rest, so that a later set-up with
# nothing new to install needs no network. The stamp is taken away before and
# made after, so an interrupted set-up leaves none.
$(READY): $(VENV)/.made pyproject.toml constraints.txt
	@rm -f $@
	@echo 'Setting up $(VENV), which takes a few minutes the first time ...'
	$(PIP) install --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) \
	    "$$(sed -n 's/^\(torch==[^ ;]*\).*/\1/p' constraints.txt)"
	$(PIP) install --quiet --constraint constraints.txt hatchling
	$(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@

$(VENV)/.made:
	@command -v '$(PYTHON)' >/dev/null || { \
	    echo 'No $(PYTHON) here. The book needs Python 3.11 or newer; PYTHON=... says which.' >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "$(PYTHON) is $$('$(PYTHON)' -V 2>&1). The book needs 3.11 or newer; PYTHON=... says which." >&2; exit 1; }
	@'$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo '$(PYTHON) cannot make virtual environments: install venv (Debian and Ubuntu: python3-venv).' >&2; exit 1; }
	'$(PYTHON)' -m venv --clear $(VENV)
	@touch $@
