# Every target does its own set-up: a fresh clone and Python 3.11 or 3.12 are enough.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test soak bench docs lint clean

# Only files whose SHA-256 is in a lock are installed, PyTorch for the tests excepted.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
LOCKED := $(INSTALL) --require-hashes -r

# The stamps hold the installed state: nothing is installed twice.
.venv/product: requirements.lock
	$(PYTHON) -m venv .venv
	$(LOCKED) requirements.lock
	touch $@

.venv/dev: .venv/product requirements-dev.lock requirements-torch.txt requirements-onnx.txt \
		requirements-docs.txt
	$(LOCKED) requirements-dev.lock
	$(LOCKED) requirements-docs.txt
	$(INSTALL) -r requirements-torch.txt
	# Without its own pins, which would take back the locked versions.
	$(LOCKED) requirements-onnx.txt --no-deps
	touch $@

demo: .venv/product
	$(BIN)/python main.py --config=configs/demo.py --workdir=runs/demo

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

HOSTS := tests/fmfa_jax/machines/test_hosts.py tests/fmfa_jax/search/test_search_hosts.py

# Up to four real processes, which wait for each other for 30 s at most, have the
# machine to themselves.
test: lint
	$(BIN)/python -m pytest -n 2 --dist=loadfile --no-loadscope-reorder \
		$(HOSTS:%=--ignore=%)
	$(BIN)/python -m pytest $(HOSTS)

# What a release should have been through: hours of kills and hostile files.
soak: .venv/dev
	$(BIN)/python -m pytest -m soak -n 2 --dist=loadfile --no-loadscope-reorder -v -rP

bench: .venv/dev
	$(BIN)/python -m benchmarks

# Nothing of the project is imported, so its own packages are not needed.
.venv/docs: requirements-docs.txt
	$(PYTHON) -m venv .venv
	$(LOCKED) requirements-docs.txt
	touch $@

docs: .venv/docs
	$(BIN)/python -m mkdocs build

clean:
	rm -rf .venv runs build site *.egg-info
