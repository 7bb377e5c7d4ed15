# `make run` and `make test` do all the set-up a fresh machine needs; a second run installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --constraint constraints.txt
SAMPLE := src/xycodec/assets/fox.flac
# Its weights are read; what it asks for (librosa, numba, a voice detector for setuptools under 81) is not needed for that.
WEIGHTS := resemblyzer

.PHONY: run install-train install-eval test test-long test-all lint docs clean

run: $(VENV)/.installed
	$(BIN)/xycodec roundtrip $(SAMPLE) --output out --overwrite
	@echo "Your own file: $(BIN)/xycodec roundtrip FILE --output out"

# What `xycodec train` needs beside the codec; and `evaluate`, `probe` and `abx`.
install-train: $(VENV)/.installed-train

install-eval: $(VENV)/.installed-eval

# A worker that has no tests left takes half of the other's, so that both end together.
PYTEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# Every contract; then what trains for long, kills many times and starts processes that meet; and both.
test: $(VENV)/.installed-dev
	$(PYTEST) -m "not long"

# Long tests wait for processes half of their time, so twice as many run at once.
test-long: $(VENV)/.installed-dev
	$(PYTEST) -n 4 -m long

test-all: $(VENV)/.installed-dev
	$(PYTEST)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The guides and the API reference. Pages open from the disk; their search needs a server.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "Open site/index.html, or: $(BIN)/python -m http.server --directory site"

# torch first and exactly, so that nothing else picks a build for it.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("xycodec needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $$(grep '^torch==' constraints.txt)
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-train: $(VENV)/.installed
	$(PIP) --editable '.[train]'
	@touch $@

$(VENV)/.installed-eval: $(VENV)/.installed
	$(PIP) --editable '.[eval]'
	$(PIP) --no-deps $(WEIGHTS)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps $(WEIGHTS)
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) --editable '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) out build dist site
