# make run    install into .venv (once), then run the preset `demo` through the Prefect flow
# make test   install, then all tests
# make lint   install, then ruff, mypy and the import contracts
# make containers  check Dockerfile, compose file and Kubernetes jobs with tools of their own
# make faults strike real runs in every way that docs/reliability.md names, and write its table
# make bench  all benchmarks in one table, written to docs/performance.md
# make docs   build the site of docs/ in build/docs/site; a broken link is an error
# make lock   write requirements.lock from what .venv holds now
#
# FAIRWAY_STORE names another store; PRESET another preset.

# Relative when make runs here, so that a checkout on a path with spaces works too.
ROOT := $(patsubst %/,%,$(dir $(lastword $(MAKEFILE_LIST))))
PYTHON ?= python3
VENV := $(ROOT)/.venv
BIN := $(VENV)/bin
DOCS_VENV := $(ROOT)/.venv-docs
CONTAINERS_VENV := $(ROOT)/.venv-containers
INSTALLED := $(VENV)/.installed
PRESET ?= demo
# Python would look for its own library there and not start.
unexport PYTHONHOME
export FAIRWAY_STORE ?= $(ROOT)/.fairway

.PHONY: run test lint lock faults bench docs containers

run: $(INSTALLED)
	@"$(BIN)/fairway" run --preset $(PRESET)

test: $(INSTALLED)
	@cd "$(ROOT)" && .venv/bin/python -m pytest -n 3 --dist loadfile

faults: $(INSTALLED)
	@cd "$(ROOT)" && .venv/bin/python -m benchmarks.faults

bench: $(INSTALLED)
	@cd "$(ROOT)" && .venv/bin/python -m benchmarks

lint: $(INSTALLED)
	@cd "$(ROOT)" && .venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy && .venv/bin/lint-imports

containers: $(CONTAINERS_VENV)/.installed
	@cd "$(ROOT)" && .venv-containers/bin/hadolint Dockerfile
	@cd "$(ROOT)" && .venv-containers/bin/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml
	@cd "$(ROOT)" && .venv-containers/bin/kubernetes-validate --strict --quiet deploy/kubernetes/*.yaml

# 60 MB, most of it Kubernetes' schemas.
$(CONTAINERS_VENV)/.installed: $(ROOT)/pyproject.toml
	"$(PYTHON)" -m venv "$(CONTAINERS_VENV)"
	"$(CONTAINERS_VENV)/bin/python" -m pip install --quiet $$("$(CONTAINERS_VENV)/bin/python" -c 'import sys, tomllib; \
	    print(*tomllib.load(open(sys.argv[1], "rb"))["dependency-groups"]["containers"])' "$(ROOT)/pyproject.toml")
	@touch "$@"

docs: $(DOCS_VENV)/.installed
	@"$(DOCS_VENV)/bin/python" "$(ROOT)/docs/build_site.py" "$(ROOT)/build/docs"
	@"$(DOCS_VENV)/bin/zensical" build --strict --clean --config-file "$(ROOT)/build/docs/zensical.toml"

# An environment of its own: the pages need nothing of Fairway, and requirements.lock nothing of the pages.
$(DOCS_VENV)/.installed: $(ROOT)/pyproject.toml
	"$(PYTHON)" -m venv "$(DOCS_VENV)"
	"$(DOCS_VENV)/bin/python" -m pip install --quiet $$("$(DOCS_VENV)/bin/python" -c 'import sys, tomllib; \
	    print(*tomllib.load(open(sys.argv[1], "rb"))["project"]["optional-dependencies"]["docs"])' "$(ROOT)/pyproject.toml")
	@touch "$@"

# Sizes of the wheels that requirements.lock stands for on Linux x86-64, PyTorch's dependencies included.
define ABOUT_THE_INSTALLATION
Installing into $(VENV), once.
  download  what pip does not find on this machine: 3.0 GB from PyPI, of which 2.7 GB are PyTorch and its CUDA libraries.
            Without an NVIDIA GPU, PyTorch's own index has a build that makes it 0.5 GB:
            PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make run
  time      4 minutes for 3.0 GB at 100 Mbit/s, 40 seconds for 0.5 GB; then about 2 minutes to unpack
  disk      2 GB, several more with CUDA
endef
export ABOUT_THE_INSTALLATION

# pip copes with its own age, but setuptools must be there before the project is installed without build isolation.
$(INSTALLED): $(ROOT)/requirements.lock $(ROOT)/pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit("Fairway needs Python 3.11 or newer; set PYTHON=/path/to/it" if sys.version_info < (3, 11) else 0)'
	@echo "$$ABOUT_THE_INSTALLATION"
	"$(PYTHON)" -m venv "$(VENV)"
	"$(BIN)/python" -m pip install --requirement "$(ROOT)/requirements.lock"
	"$(BIN)/python" -m pip install --quiet --no-deps --no-build-isolation --editable "$(ROOT)"
	@touch "$@"

lock:
	@{ echo "# Exact versions of everything, development tools included. Written by \`make lock\`, installed by \`make run\`."; \
	   "$(BIN)/python" -m pip freeze --all --exclude-editable --exclude pip --exclude fairway-lm | sed 's/^\(torch==[^+]*\)+.*/\1/'; \
	} > "$(ROOT)/requirements.lock.new"
	@mv "$(ROOT)/requirements.lock.new" "$(ROOT)/requirements.lock"
