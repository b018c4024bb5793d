# make test: environment, lint, tests.  make demo: environment, the main job.  A second call starts at once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
ASSETS := $(firstword $(VLA_PRUNE_LIBERO_ASSETS) $(wildcard ../shared/libero/assets))

.PHONY: test demo lint env libero clean

env: $(VENV)/.core
libero: $(VENV)/.libero

# torch goes first and pinned: any other requirement of it would bring the CUDA build.
$(VENV)/.core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e '.[sim,nuscenes,train,viz,onnx,dds,dev]'
	touch $@

# hf-libero's environment path without what its training code drags in; an extra cannot express this.
$(VENV)/.libero: $(VENV)/.core
	$(PIP) --no-deps hf-libero robosuite bddl
	$(PIP) mujoco numba scipy termcolor cloudpickle pyyaml future matplotlib easydict tqdm
	touch $@

lint: env
	$(BIN)/ruff check .

test: env libero lint
	VLA_PRUNE_LIBERO_ASSETS="$(ASSETS)" OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile

# The driving policy needs no more; without it the demo is LIBERO's.
demo: env $(if $(wildcard vla_prune/models/pocket_drive),,$(if $(ASSETS),libero))
	VLA_PRUNE_LIBERO_ASSETS="$(ASSETS)" $(BIN)/vla-prune demo

clean:
	rm -rf $(VENV)
