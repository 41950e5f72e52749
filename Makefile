# `make run` and `make test` need Python >= 3.11 and a package index; both build .venv on first use.
# `make bench` compares with PyTorch, transformers and TRL, which it installs beside; Tunix has its own way: BUILD.md.
PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VERSION := $(shell [ -z "$(PYTHON)" ] || $(PYTHON) -c 'import sys; v = sys.version_info; \
	print("py312" if v >= (3, 12) else "py311" if v >= (3, 11) else "")')
BIN := .venv/bin
MALLOC := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000
WORKDIR ?= runs/default
ARGS ?=

.PHONY: run test lint bench audit clean
run: .venv/ready
	$(MALLOC) \
	$(BIN)/python -m eagrl_jax.main --config=configs/rl.py --workdir="$(WORKDIR)" $(ARGS)

test: .venv/ready
	$(BIN)/python -m pytest -n auto $(ARGS)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/ready
	$(BIN)/python -m pip install --quiet --constraint constraints/$(VERSION).txt --editable '.[peers]'
	for b in decode alignment search 'expert --lengths 10 48' \
	    'expert --lengths 10 48 --prefixes --members 1 --reps 1'; do \
	  $(BIN)/python -m benchmarks.$$b $(ARGS) || exit 1; done
	$(MALLOC) $(BIN)/python -m benchmarks.update $(if $(findstring --no_peer,$(ARGS)),,--peer trl) $(ARGS)
	MALLOC_ARENA_MAX=1 MALLOC_MMAP_THRESHOLD_=65536 $(BIN)/python -m benchmarks.memory

# Licences and known vulnerabilities of the pinned versions; pip-audit gets an environment of its own.
audit: .venv/ready
	{ test -x .venv/audit/bin/pip-audit || { $(PYTHON) -m venv .venv/audit && \
	  .venv/audit/bin/python -m pip install --quiet pip-audit; }; } || echo 'pip-audit could not be installed'
	$(BIN)/python constraints/audit.py constraints/$(VERSION).txt .venv/audit/bin/pip-audit

.venv/ready: pyproject.toml constraints/$(VERSION).txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints/$(VERSION).txt --editable '.[dev]'
	touch $@

# What .venv/ready asks for where VERSION is empty; `make clean` does not.
constraints/.txt:
	$(error needs Python >= 3.11 on PATH (or PYTHON=...))

clean:
	rm -rf .venv build dist
