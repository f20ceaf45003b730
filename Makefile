# Every target sets up what it needs; a second call is quick.
PYTHON ?= python3
PYTHON312 ?= python3.12
BIN := .venv/bin
OUT := outputs/demo
PIXELS := outputs/pixels

.PHONY: install demo demo-pixels test test-all real-packages lint format clean

install: .venv/installed

# One pip call with the constraints, so that no package moves another's pin.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("flowhand needs Python 3.11 or newer, this is " + sys.version) if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[metaworld,pusht,deploy,data,dev]'
	touch $@

# Goes on where an interrupted demo stopped; a finished one is evaluated again.
demo: install
	@if [ -d $(OUT)/checkpoint ] || [ -d $(OUT)/checkpoint.previous ]; then $(BIN)/python train.py resume=$(OUT); \
	else $(BIN)/python train.py experiment=demo out=$(OUT); fi

# The same through one camera: pictures of 64 pixels and the hand's own state.
demo-pixels: install
	@if [ -d $(PIXELS)/checkpoint ] || [ -d $(PIXELS)/checkpoint.previous ]; then $(BIN)/python train.py resume=$(PIXELS); \
	else $(BIN)/python train.py experiment=pixels out=$(PIXELS); fi

test: install
	$(BIN)/python -m pytest -m 'not slow' -n 2 --dist loadfile

test-all: install
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The packages whose formats are read and written, each in a virtual environment of its own below .real (some GB).
real-packages: install
	$(BIN)/python -m benchmarks.real_packages --python $(PYTHON312)
	FLOWHAND_LEROBOT=.real/lerobot/bin/python $(BIN)/python -m pytest tests/robots/test_lerobot.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv outputs data wandb
