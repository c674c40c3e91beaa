# make demo       trains and tests on Fashion-MNIST (classification only): a
#                 network trained at 28 px only, the same network adapted to
#                 smaller sizes, and one that is trained for any size
# make demo-det   trains and tests a detector (builds mmcv's operators once)
# make demo-real  adapts EfficientNet-Lite0, trained on ImageNet at 224 px only, to
#                 sizes down to 96 px by images without labels, and compares it
#                 with its own answers at 224
# make test       installs everything, lints, runs all tests
# make test-hosts runs tests/test_hosts beside mmseg, mmpose, mmaction2, mmyolo
#                 and mmrotate, which make test skips where they are missing
# make doctor     lists what is installed, and what conflicts
# make docs       makes a site of docs/, whose links must all resolve
# make reproduce, make reproduce-det
#                 train and test each network of docs/results.md with three
#                 seeds: of classification (clothes, letters), and of detection;
#                 with IMAGES=256 on so many images alone, with one seed, to
#                 try each command
# make tables     writes their results into README, docs and the cards
# Each goes on where it was interrupted. PYTHON=python3.11 chooses the
# interpreter, STACK=onedl OneDL's forks of the hosts in an environment of
# their own, V=1 shows the commands.
SHELL := /bin/bash -o pipefail
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: demo demo-det demo-real test test-hosts lint doctor docs reproduce reproduce-det tables clean
$(V).SILENT:

PYTHON ?= python3
STACK ?= upstream
ifeq ($(STACK),upstream)
  VENV := .venv
  WORK := work_dirs
  BASIC := classification
  FULL := detection
  MMCV := mmcv==2.1.0
  OPENCV := opencv-python-headless==5.0.*
else ifeq ($(STACK),onedl)
  VENV := .venv-onedl
  WORK := work_dirs/onedl
  BASIC := onedl
  FULL := onedl-detection
  MMCV := onedl-mmcv==2.3.6
  OPENCV := opencv-python-headless==4.12.*
else
  $(error STACK must be upstream or onedl, but got '$(STACK)': leave it out or write STACK=onedl)
endif

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
EXPERIMENTS := tools/benchmarks/experiments
STOCK := resnet18_1xb128_fashion-mnist-28px
STOCK_CONFIG := $(EXPERIMENTS)/configs/$(STOCK).py
NAME := sct-any-size_resnet18_1xb128_fashion-mnist
RUN := $(WORK)/$(NAME)
DATA := data/fashion-mnist
DET_NAME := sct_retinanet_r18_fpn_1xb8_fashion-det
DET_RUN := $(WORK)/$(DET_NAME)
DET_DATA := data/fashion-det
GLYPHS := data/glyphs
LITE := data/efficientnet-lite
LITE_NAMES := $(foreach i,0 1 2,efficientnet-lite$(i)_in1k-pre_1xb8_photos)
REAL := configs/$(firstword $(LITE_NAMES)).py $(LITE)/efficientnet-lite0.pth
REAL_RUN := $(WORK)/adapt_$(firstword $(LITE_NAMES))
PHOTOS := data/photos
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/sct_mm
# This copy is imported, even if it was moved after it was installed.
export PYTHONPATH := $(CURDIR)$(addprefix :,$(PYTHONPATH))

# The output of pip is shown only if it fails.
LOG := $(VENV)/install.log
QUIETLY := >>$(LOG) 2>&1 || { tail -n 20 $(LOG) >&2; exit 1; }
# Of the log of a run: progress and warnings, except those of deprecated names.
BRIEFLY := | sed -unE '/deprecated in future/d; \
  /Epoch\((train|val)\)|resumed epoch| - (WARNING|ERROR) - |to the bit/p; \
  /[│┃━─]|Compared with the base|keeps: |learning rate|Warning: /p'
NAMED = | sed -u 's/^/$(1): /'
# mmcv-lite has no compiled operators, and cannot be installed beside mmcv.
EXTRA = $(if $(wildcard $(VENV)/mmcv.built),$(FULL),$(BASIC))

# Images of 14 pixels keep one core busy: two trainings run at once.
demo: $(VENV)/classification.done $(DATA)/fetched
	echo "Training at 28 px only, then adapting to smaller sizes; at once, training for any size"
	echo "from 28 to 14 px: 5 to 10 minutes on two cores. The full logs are in $(WORK)."
	export OMP_NUM_THREADS=1; failed=; \
	( $(BIN)/python tools/train.py $(STOCK_CONFIG) --work-dir $(WORK)/$(STOCK) --resume \
	    $(BRIEFLY) $(call NAMED,28 px only) && \
	  $(BIN)/python tools/adapt.py $(STOCK_CONFIG) $(WORK)/$(STOCK) \
	    --scales 28 24 21 18 16 14 --sizes 26 22 20 --epochs 1 --between 0.5 \
	    --cfg-options train_dataloader.dataset.indices=20000 \
	    --out $(WORK)/adapt_$(STOCK) --resume \
	    $(BRIEFLY) $(call NAMED,adapted) ) & \
	$(BIN)/python tools/train.py configs/$(NAME).py --work-dir $(RUN) --resume \
	  $(BRIEFLY) $(call NAMED,any size) || failed=1; \
	wait $$! && test -z "$$failed"
	$(BIN)/python tools/test.py configs/$(NAME).py $(RUN) --scales 14:28:2 \
	  --compare $(WORK)/adapt_$(STOCK)/adapt_$(STOCK).py $(WORK)/adapt_$(STOCK) \
	  --compare $(STOCK_CONFIG) $(WORK)/$(STOCK) --out $(WORK)/demo
	echo "Next, in this environment:"
	echo "  source $(BIN)/activate"
	echo "  python tools/pick.py $(WORK)/demo/scales.json --max-gflops 0.008"
	echo "  python tools/visualizations/show_sizes.py configs/$(NAME).py $(RUN) 1734 --out image.png"

demo-det: $(DET_DATA)/composed
	echo "Training: 6 minutes on two cores. The full log is in $(DET_RUN)."
	$(BIN)/python tools/train.py configs/$(DET_NAME).py --work-dir $(DET_RUN) --resume $(BRIEFLY)
	$(BIN)/python tools/test.py configs/$(DET_NAME).py $(DET_RUN) \
	  --scales 128 112 96 80 64 --out $(DET_RUN)

demo-real: $(LITE)/checked $(PHOTOS)/composed
	echo "Adapting EfficientNet-Lite0 to 192, 160, 128 and 96 px: 14 to 17 minutes on two cores. The full log is in $(REAL_RUN)."
	$(BIN)/python tools/adapt.py $(REAL) --scales 224 192 160 128 96 \
	  --images $(PHOTOS)/train --epochs 1 --out $(REAL_RUN) --resume $(BRIEFLY)
	echo "Comparing it, and the network as it was, with that network's answers at 224 px."
	$(BIN)/python tools/test.py $(REAL_RUN)/adapt_$(firstword $(LITE_NAMES)).py $(REAL_RUN) \
	  --against $(REAL) --compare $(REAL) --images $(PHOTOS)/test \
	  --scales 224 192 160 128 96 --out $(WORK)/demo-real
	$(BIN)/python tools/export.py $(REAL_RUN)/adapt_$(firstword $(LITE_NAMES)).py $(REAL_RUN) \
	  --size 128 --format onnx --out $(WORK)/demo-real/efficientnet-lite0-128px.onnx --force

test: lint $(DATA)/fetched
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

# The siblings stand in a folder of their own: only these tests import them.
test-hosts: $(VENV)/hosts.done
	PYTHONPATH=$(PYTHONPATH):$(CURDIR)/$(VENV)/hosts OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest --numprocesses auto --dist worksteal tests/test_hosts

lint: $(VENV)/all.done
	$(BIN)/python -m ruff check --quiet .
	$(BIN)/python -m mypy --no-error-summary

doctor: | $(VENV)/made
	$(BIN)/python -m sct_mm.doctor

docs: $(VENV)/docs.done
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet \
	  --site-dir $(CURDIR)/$(WORK)/site
	echo "The site is in $(WORK)/site: open index.html."

# The last --seeds counts.
REPRODUCTION = $(if $(IMAGES),--images $(IMAGES) --seeds 0 --out $(WORK)/reproduce-$(IMAGES)-images,--out $(WORK)/reproduce)

reproduce: $(VENV)/classification.done $(DATA)/fetched $(GLYPHS)/made
	set -e; for experiment in any-size adapt ablations baselines longer longest \
	    'compute --seeds 0' distill glyphs glyphs-adapt glyphs-baselines \
	    'glyphs-distill --seeds 0' 'glyphs-longer --seeds 0'; do \
	  $(BIN)/python $(EXPERIMENTS)/reproduce.py $$experiment $(REPRODUCTION); done

reproduce-det: $(DET_DATA)/composed
	set -e; for experiment in detection detection-baselines detection-schedules \
	    'detection-singles --seeds 0' 'detection-adapt --seeds 0'; do \
	  $(BIN)/python $(EXPERIMENTS)/reproduce.py $$experiment $(REPRODUCTION); done

tables: $(VENV)/classification.done
	$(BIN)/python $(EXPERIMENTS)/tables.py --take $(WORK)/reproduce
	$(BIN)/python tools/dev/fill_metafile.py

clean:
	rm -rf .venv .venv-onedl work_dirs

$(VENV)/made:
	$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' || \
	  { echo "Python 3.10, 3.11 or 3.12 is needed, but $(PYTHON) is another:" \
	    "run make PYTHON=python3.11 ..." >&2; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	touch $@

# pip writes RECORD last, and takes a package without one, whose installation
# was interrupted, for installed.
define DROP_UNFINISHED
	for folder in $(VENV)/lib/python*/site-packages/*.dist-info; do \
	  test -s $$folder/RECORD -a -s $$folder/METADATA || rm -rf $$folder; done
endef

# opencv-python needs libraries of a desktop, which a server lacks. The doctor
# checks that all packages can be imported together.
define FINISH
	$(PIP) uninstall -y opencv-python opencv-python-headless $(QUIETLY)
	$(PIP) install --no-deps '$(OPENCV)' $(QUIETLY)
	$(BIN)/python -m sct_mm.doctor $(QUIETLY)
endef

$(VENV)/classification.done: setup.py | $(VENV)/made
	echo "Installing torch, mmpretrain and what they need into $(VENV): 3 minutes, 6 GB."
	$(DROP_UNFINISHED)
	$(PIP) install -e '.[$(EXTRA)]' $(QUIETLY)
	$(FINISH)
	touch $@

$(VENV)/all.done: setup.py tools/dev/build_mmcv.sh | $(VENV)/made
	echo "Installing torch, mmpretrain and what the tests need into $(VENV): 3 minutes, 6 GB."
	$(DROP_UNFINISHED)
	$(PIP) install -e '.[test,$(EXTRA)]' 'setuptools>=77,<81' wheel ninja $(QUIETLY)
	bash tools/dev/build_mmcv.sh $(BIN)/python '$(MMCV)' "$(CACHE)/wheels" && touch $(VENV)/mmcv.built
	echo "Installing mmdet into $(VENV): a minute."
	$(PIP) install -e '.[test,$(FULL)]' $(QUIETLY)
	$(FINISH)
	touch $(VENV)/classification.done $@

$(VENV)/hosts.done: tools/dev/hosts.txt tools/dev/install_hosts.py | $(VENV)/all.done
	$(if $(filter upstream,$(STACK)),,$(error make test-hosts needs STACK=upstream, for which the siblings are made))
	echo "Installing mmseg, mmpose and other siblings into $(VENV)/hosts: a minute."
	rm -rf $(VENV)/hosts
	$(BIN)/python tools/dev/install_hosts.py $(VENV)/hosts $(QUIETLY)
	touch $@

$(VENV)/real.done: setup.py | $(VENV)/classification.done
	echo "Installing timm and onnxruntime into $(VENV)."
	$(DROP_UNFINISHED)
	$(PIP) install -e '.[timm,export]' $(QUIETLY)
	touch $@

$(VENV)/docs.done: setup.py | $(VENV)/classification.done
	echo "Installing mkdocs into $(VENV)."
	$(DROP_UNFINISHED)
	$(PIP) install -e '.[docs]' $(QUIETLY)
	touch $@

$(DATA)/fetched: | $(VENV)/classification.done
	$(BIN)/python tools/dataset_converters/fashion_mnist.py $(DATA)
	touch $@

$(DET_DATA)/composed: tools/dataset_converters/fashion_det.py | $(VENV)/all.done $(DATA)/fetched
	$(BIN)/python tools/dataset_converters/fashion_det.py $(DATA) $(DET_DATA)
	touch $@

$(GLYPHS)/made: tools/dataset_converters/glyphs.py | $(VENV)/classification.done
	echo "Drawing letters and digits: 2 minutes, 290 MB."
	$(BIN)/python tools/dataset_converters/glyphs.py $(GLYPHS)
	touch $@

$(PHOTOS)/composed: tools/dataset_converters/photos.py tools/dataset_converters/photo_sources.py \
    | $(VENV)/classification.done
	echo "Composing images of drawings, cut-outs and wallpapers: 5 minutes, 470 MB to download."
	$(BIN)/python tools/dataset_converters/photos.py $(PHOTOS)
	touch $@

$(LITE)/checked: tools/dev/efficientnet_lite.py | $(VENV)/real.done
	echo "Downloading EfficientNet-Lite0 to -Lite2: 62 MB."
	$(BIN)/python tools/dev/efficientnet_lite.py $(LITE_NAMES:%=configs/%.py) --out $(LITE)
	touch $@
