# Everything a newcomer runs: `make demo`, `make test`. The environment is made in .venv by the first of them.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   := .venv
BIN    := $(VENV)/bin
# torch first: its exact version decides which build the rest of the packages see.
SETUP   = test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); \
          $(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)" && \
          $(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"

.PHONY: demo test test-quick test-long lint format app clean help

help:
	@echo "make demo    install and run the whole story on canvas (report in runs/demo/report.html)"
	@echo "make app     open the dashboard on the demo's run"
	@echo "make test    install and run the tests"
	@echo "make test-quick  the same without the tests marked slow"
	@echo "make test-long  kills, damage and full disks at full size; writes benchmarks/results/reliability.json"
	@echo "make lint    format, lint and type checks"
	@echo "make format  rewrite the sources in the house format"

$(VENV)/.demo: pyproject.toml
	@$(SETUP) -e ".[app]"
	@touch $@

$(VENV)/.dev: pyproject.toml
	@$(SETUP) -e ".[dev]"
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo
	$(BIN)/denoscope demo --out runs/demo

app: $(VENV)/.demo
	$(BIN)/denoscope app runs/demo

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

test-quick: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not slow and not long"

test-long: $(VENV)/.dev
	OMP_NUM_THREADS=1 nice -n 10 $(BIN)/python -m pytest -q -s -m long --timeout 0 tests/test_store_reliability.py

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) runs/demo
