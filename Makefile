# make demo       trains and tests the Fashion-MNIST demo (classification only)
# make test       installs everything, lints, runs all tests
# make reproduce  every arm of the demo with three seeds: the tables of README
# Each goes on where it was interrupted. PYTHON chooses the interpreter.
SHELL := /bin/bash -o pipefail
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: demo test lint reproduce clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
NAME := sct_resnet18_1xb128_fashion-mnist
RUN := work_dirs/$(NAME)
DATA := data/fashion-mnist
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/sct_mm

demo: $(VENV)/classification.done $(DATA)/fetched
	$(BIN)/python tools/train.py configs/$(NAME).py --work-dir $(RUN) --resume
	$(BIN)/python tools/test.py configs/$(NAME).py "$$(cat $(RUN)/last_checkpoint)" \
	  --scales 28 24 21 18 14 10 --out $(RUN)

test: lint $(DATA)/fetched
	$(BIN)/python -m pytest

lint: $(VENV)/all.done
	$(BIN)/ruff check .

reproduce: $(VENV)/classification.done $(DATA)/fetched
	$(BIN)/python tools/reproduce.py
	$(BIN)/python tools/reproduce.py --schedules

clean:
	rm -rf $(VENV) work_dirs

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' || \
	  { echo "Python 3.10, 3.11 or 3.12 is needed, but $(PYTHON) is another:" \
	    "run make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# opencv-python needs a desktop's libraries; the headless build needs none.
define USE_HEADLESS_OPENCV
	$(PIP) uninstall -q -y opencv-python opencv-python-headless
	$(PIP) install -q --no-deps opencv-python-headless
endef

# mmcv-lite has no compiled operators, and may not stand beside mmcv.
$(VENV)/classification.done: setup.py | $(BIN)/python
	if [ ! -e $(VENV)/mmcv.built ]; then $(PIP) install -e '.[classification]'; fi
	$(USE_HEADLESS_OPENCV)
	touch $@

$(VENV)/all.done: setup.py tools/build_mmcv.sh | $(BIN)/python
	$(PIP) install -e '.[test]' 'setuptools<81' wheel ninja
	bash tools/build_mmcv.sh $(BIN)/python $(CACHE)/wheels
	touch $(VENV)/mmcv.built
	$(PIP) install -e '.[test,detection]'
	$(USE_HEADLESS_OPENCV)
	touch $(VENV)/classification.done $@

$(DATA)/fetched: | $(VENV)/classification.done
	$(BIN)/python tools/fetch_fashion_mnist.py $(DATA)
	touch $@
