# Every word sets up what it needs: a virtual environment in .venv, from requirements/*.lock.
#   make demo     two commands from nothing to a linked shop, checked step by step
#   make test     the whole suite, in minutes
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
READY := .venv/.ready
BENCH_READY := .venv-bench/.ready
SOURCES := kit certs proto policy registry sidecar injector traces cni local cli

.PHONY: demo test check bench bench-registry fuzz fuzz-native mutants soak node node-images cluster gen docs render image-dry threats lock clean

$(READY): requirements/dev.lock pyproject.toml scripts/venv.sh
	@sh scripts/venv.sh .venv requirements/dev.lock
	@touch $@

$(BENCH_READY): requirements/bench.lock pyproject.toml scripts/venv.sh
	@sh scripts/venv.sh .venv-bench requirements/bench.lock
	@touch $@

HELM_READY := .helm/.ready

$(HELM_READY): requirements/helm.lock $(READY)
	@rm -rf .helm
	@.venv/bin/uv pip install --quiet --target .helm --python-version 3.13 --no-deps --require-hashes -r requirements/helm.lock
	@touch $@

demo: $(READY)
	@$(PY) scripts/needs.py demo
	@.venv/bin/podlink demo

test: $(READY) $(HELM_READY)
	@$(PY) scripts/needs.py test
	$(PY) -m pytest $(ARGS)

check: $(READY)
	.venv/bin/ruff format --check --quiet .
	.venv/bin/ruff check --quiet .
	.venv/bin/mypy
	.venv/bin/lint-imports
	$(PY) scripts/gen.py --check
	@$(PY) -m tests.threats > /dev/null

bench-registry: $(READY)
	$(PY) -m bench.registry $(ARGS)

bench: $(BENCH_READY)
	@.venv-bench/bin/python scripts/needs.py bench
	.venv-bench/bin/python -m bench $(ARGS)

fuzz: $(READY)
	$(PY) -m scripts.fuzz $(ARGS)

FUZZ_READY := .fuzz/.ready

$(FUZZ_READY): requirements/fuzz.lock $(READY)
	@rm -rf .fuzz/lib && mkdir -p .fuzz
	@.venv/bin/uv pip install --quiet --python $(PY) --target .fuzz/lib --require-hashes --only-binary :all: -r requirements/fuzz.lock || echo "no build of Atheris for this Python"
	@touch $@

fuzz-native: $(FUZZ_READY)
	PYTHONPATH=.fuzz/lib $(PY) -m scripts.fuzz_native $(ARGS)

soak: $(READY)
	$(PY) -m pytest -m soak $(ARGS)

NODE_IMAGES := $(or $(PODLINK_NODE_IMAGES),.node-images)

node-images: $(READY)
	$(PY) -m tests.kubernetes.node.images $(NODE_IMAGES)

node: $(READY) $(HELM_READY)
	PODLINK_NODE_IMAGES=$(abspath $(NODE_IMAGES)) $(PY) -m pytest -rs tests/kubernetes/node $(ARGS)

cluster: $(READY)
	$(PY) -m tests.kubernetes.node.cluster $(or $(FOLDER),$(shell mktemp -d)/node) $(NODE_IMAGES)

gen: $(READY)
	$(PY) scripts/gen.py

docs: $(READY)
	script -qec "stty cols 150; .venv/bin/podlink demo --no-stay" .venv/typescript > /dev/null
	$(PY) scripts/demo_picture.py < .venv/typescript
	$(PY) -m scripts.review_pictures
	$(PY) -m pytest tests/test_docs.py tests/test_threat_model.py tests/sidecar/test_reasons.py $(ARGS)

render: $(READY) $(HELM_READY)
	$(PY) -m scripts.render

image-dry: $(READY)
	@rm -rf .image
	@.venv/bin/uv pip install --quiet --target .image/lib --require-hashes --only-binary :all: -r requirements/image.lock
	@$(PY) scripts/assemble.py .image

threats: $(READY)
	@$(PY) -m tests.threats

mutants: $(READY)
	@$(PY) -m tests.mutants $(ARGS)

lock: $(READY)
	.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --extra dev pyproject.toml -o requirements/dev.lock
	.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links -c requirements/dev.lock pyproject.toml -o requirements/sidecar.lock
	.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --extra control -c requirements/dev.lock pyproject.toml -o requirements/image.lock
	.venv/bin/uv pip compile --quiet --python-version 3.13 --no-deps --generate-hashes --no-header --no-emit-index-url --no-emit-find-links requirements/helm.in -o requirements/helm.lock
	.venv/bin/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links requirements/fuzz.in -o requirements/fuzz.lock
	.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --extra bench -c requirements/dev.lock pyproject.toml -o requirements/bench.lock

clean:
	rm -rf .venv .venv-bench .helm .image .fuzz .node-images .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
