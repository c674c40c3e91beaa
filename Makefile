# make demo       trains and tests the Fashion-MNIST demo (classification only)
# make demo-det   trains and tests a detector (builds mmcv's operators once)
# make test       installs everything, lints, runs all tests
# make reproduce, make reproduce-det
#                 every arm of a demo with three seeds: the tables of README
# Each goes on where it was interrupted. PYTHON chooses the interpreter.
SHELL := /bin/bash -o pipefail
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: demo demo-det test lint reproduce reproduce-det clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
NAME := sct_resnet18_1xb128_fashion-mnist
RUN := work_dirs/$(NAME)
DATA := data/fashion-mnist
DET_NAME := sct_retinanet_r18_fpn_1xb8_fashion-det
DET_RUN := work_dirs/$(DET_NAME)
DET_DATA := data/fashion-det
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/sct_mm

demo: $(VENV)/classification.done $(DATA)/fetched
	$(BIN)/python tools/train.py configs/$(NAME).py --work-dir $(RUN) --resume
	$(BIN)/python tools/test.py configs/$(NAME).py "$$(cat $(RUN)/last_checkpoint)" \
	  --scales 28 24 21 18 14 10 --out $(RUN)

demo-det: $(DET_DATA)/composed
	$(BIN)/python tools/train.py configs/$(DET_NAME).py --work-dir $(DET_RUN) --resume
	$(BIN)/python tools/test.py configs/$(DET_NAME).py "$$(cat $(DET_RUN)/last_checkpoint)" \
	  --scales 128 112 96 80 64 --out $(DET_RUN)

test: lint $(DATA)/fetched
	$(BIN)/python -m pytest

lint: $(VENV)/all.done
	$(BIN)/ruff check .

reproduce: $(VENV)/classification.done $(DATA)/fetched
	$(BIN)/python tools/reproduce.py scales
	$(BIN)/python tools/reproduce.py schedules

reproduce-det: $(DET_DATA)/composed
	$(BIN)/python tools/reproduce.py detection

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

$(DET_DATA)/composed: tools/make_fashion_det.py | $(VENV)/all.done $(DATA)/fetched
	$(BIN)/python tools/make_fashion_det.py $(DATA) $(DET_DATA)
	touch $@
