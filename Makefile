# Every word sets up what it needs (scripts/setup.sh): Debian packages, and .venv from requirements/*.lock.
#   make demo     two commands from nothing to a linked shop, checked step by step
#   make test     the whole suite, in minutes
#   make test-unit  the parts of podlink in one process; make test-tools, its command line, chart, CNI and
#                 local cluster; make test-e2e, a whole mesh (CONTRIBUTING.md: what is where)
#   make test-random  any tests in an order of their own (ARGS=tests/kit; SEED=7 for the same again)
#   make test-slow  any tests on a tenth of one core (ARGS=tests/kit; PERCENT=20 for a fifth); root
#   make coverage  whether a unit test runs each line of the data plane, the wire, trust and policy
#   make check    format, lint, types, layers, generated code
#   make bench    against Envoy and HAProxy in one run
#   make bench-registry  the registry with 10,000 pods, 1,000 Services, 500 sidecars and churn
#   make threats  each row of the threat model with its tests
#   make mutants  each listed defence broken in a copy of the tree: its tests must fail
#   make fuzz     whatever parses, judges or keeps state, under Hypothesis for ten minutes
#   make fuzz-native  the parsers under Atheris, where it has a build for this Python
#   make soak     what takes minutes: long rotations and outages under load
#   make node-images  the image by buildah, as the Dockerfile says, and those of a real node's pods
#   make node     the suite of a real node: kubelet, containerd, CNI (KUBEBUILDER_ASSETS names the programs)
#   make cluster  such a node to look around on, until Ctrl-C
#   make gen      code from proto/*.proto
#   make docs     the pictures of the demo and the page, drawn anew; and whether pages and code agree
#   make render   the plain manifests, from the chart by Helm itself
#   make image-dry  the image's own folder, assembled without Docker, and its size
#   make lock     requirements/*.lock from pyproject.toml

PY := .venv/bin/python
SETUP := @sh scripts/setup.sh
SOURCES := kit certs proto policy registry sidecar injector traces cni local cli
# Every folder and file of tests/ is in one of the three; tests/test_parts.py sees to it.
TEST_UNIT := kit policy certs registry injector sidecar traces
TEST_TOOLS := charts cli cni bench local kubernetes scripts $(notdir $(wildcard tests/test_*.py))
TEST_E2E := e2e
# The unit tests that `make coverage` runs; what it measures stands in pyproject.toml.
COVERAGE := policy certs sidecar

.PHONY: demo test test-unit test-tools test-e2e test-random test-slow coverage bare venv helm .helm/.ready check bench bench-registry fuzz fuzz-native mutants soak node node-images cluster gen docs render image-dry threats lock clean

demo:
	$(SETUP) demo
	@.venv/bin/podlink demo

test:
	$(SETUP) test
	$(PY) -m pytest $(ARGS)

test-unit test-tools test-e2e:
	$(SETUP) test
	$(PY) -m pytest $(addprefix tests/,$(TEST_$(shell echo $(@:test-%=%) | tr a-z A-Z))) $(ARGS)

test-random:
	$(SETUP) test
	$(PY) -m pytest --random-order-bucket=module $(if $(SEED),--random-order-seed=$(SEED),--random-order) $(ARGS)

test-slow:
	$(SETUP) test
	$(PY) -m scripts.slow $(or $(PERCENT),10) $(PY) -m pytest $(ARGS)

coverage:
	$(SETUP) test
	$(PY) -m coverage run -m pytest $(addprefix tests/,$(COVERAGE)) $(ARGS)
	$(PY) -m coverage report

bare:
	$(SETUP) bare
	$(PY) -m scripts.bare $(ARGS)

venv:
	$(SETUP) venv

helm .helm/.ready:
	$(SETUP) helm

check: venv
	.venv/bin/ruff format --check --quiet .
	.venv/bin/ruff check --quiet .
	.venv/bin/mypy
	.venv/bin/lint-imports
	$(PY) scripts/gen.py --check
	@$(PY) -m tests.threats > /dev/null
	@$(PY) -m tests.waits

bench-registry: venv
	$(PY) -m bench.registry $(ARGS)

bench:
	$(SETUP) bench
	.venv-bench/bin/python -m bench $(ARGS)

fuzz: venv
	$(PY) -m scripts.fuzz $(ARGS)

FUZZ_READY := .fuzz/.ready

$(FUZZ_READY): requirements/fuzz.lock | venv
	@rm -rf .fuzz/lib && mkdir -p .fuzz
	@.venv/bin/uv pip install --quiet --python $(PY) --target .fuzz/lib --require-hashes --only-binary :all: -r requirements/fuzz.lock || echo "no build of Atheris for this Python"
	@touch $@

fuzz-native: $(FUZZ_READY)
	PYTHONPATH=.fuzz/lib $(PY) -m scripts.fuzz_native $(ARGS)

soak: venv
	$(PY) -m pytest -m soak $(ARGS)

NODE_IMAGES := $(or $(PODLINK_NODE_IMAGES),.node-images)

node-images: venv
	$(PY) -m tests.kubernetes.node.images $(NODE_IMAGES)

node: helm
	PODLINK_NODE_IMAGES=$(abspath $(NODE_IMAGES)) $(PY) -m pytest -rs tests/kubernetes/node $(ARGS)

cluster: venv
	$(PY) -m tests.kubernetes.node.cluster $(or $(FOLDER),$(shell mktemp -d)/node) $(NODE_IMAGES)

gen: venv
	$(PY) scripts/gen.py

docs: venv
	script -qec "stty cols 150; .venv/bin/podlink demo --no-stay" .venv/typescript > /dev/null
	$(PY) scripts/demo_picture.py < .venv/typescript
	$(PY) -m scripts.review_pictures
	$(PY) -m pytest tests/test_docs.py tests/test_threat_model.py tests/sidecar/test_reasons.py $(ARGS)

render: helm
	$(PY) -m scripts.render

image-dry: venv
	@rm -rf .image
	@.venv/bin/uv pip install --quiet --target .image/lib --require-hashes --only-binary :all: -r requirements/image.lock
	@$(PY) scripts/assemble.py .image

threats: venv
	@$(PY) -m tests.threats

mutants: venv
	@$(PY) -m tests.mutants $(ARGS)

lock: venv
	.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --extra dev pyproject.toml -o requirements/dev.lock
	.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --extra demo -c requirements/dev.lock pyproject.toml -o requirements/demo.lock
	.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links -c requirements/dev.lock pyproject.toml -o requirements/sidecar.lock
	.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --extra control -c requirements/dev.lock pyproject.toml -o requirements/image.lock
	.venv/bin/uv pip compile --quiet --python-version 3.13 --no-deps --generate-hashes --no-header --no-emit-index-url --no-emit-find-links requirements/helm.in -o requirements/helm.lock
	.venv/bin/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links requirements/fuzz.in -o requirements/fuzz.lock
	.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --extra bench -c requirements/dev.lock pyproject.toml -o requirements/bench.lock

clean:
	rm -rf .venv .venv-bench .coverage .helm .image .fuzz .node-images .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
