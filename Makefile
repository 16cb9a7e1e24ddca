# make demo   the whole job on a miniature model, in minutes        make test   every test
# make lint   ruff and mypy                                          make bench  quick benchmarks
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# macOS gets Metal from plain mlx; Linux gets the CPU back end, or CUDA with `make EXTRA=cuda13 demo`.
ifeq ($(shell uname -s),Darwin)
EXTRA ?=
else
EXTRA ?= cpu
endif
comma := ,
EXTRAS = $(if $(EXTRA),[$(EXTRA)],)
TEST_EXTRAS = [$(if $(EXTRA),$(EXTRA)$(comma),)test]

.PHONY: demo test lint bench clean
demo: $(VENV)/.installed
	$(BIN)/acestep-mlx demo demo

test: $(VENV)/.test-installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy acestep_mlx

bench: $(VENV)/.test-installed
	for name in train_step memory encode generate convert loop; do $(BIN)/python benchmarks/$$name.py --quick || exit 1; done

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".$(EXTRAS)"
	touch $@

# The PyTorch reference and LyCORIS are test-time oracles: their modules are imported one by one, so their own
# (very long) lists of requirements are not needed.
$(VENV)/.test-installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".$(TEST_EXTRAS)"
	$(BIN)/python -m pip install --quiet --no-deps simpletuner==3.1.6 lycoris-lora==4.1.3 einops==0.8.2 toml==0.10.2
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist *.egg-info demo
