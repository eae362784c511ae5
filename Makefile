# make demo: sets up .venv and runs the main job. make test: sets it up and runs the tests, four minutes on 2 cores.
# make test-all: also those that are slow, and more random examples of each test that draws them. make docs: build/site.
# TORCH chooses the build of torch: make test TORCH=torch==2.13.0
TORCH ?= torch
PYTHON ?= python3
RUN := .venv/bin
comma := ,

.PHONY: demo test test-all lint docs bench zoo clean

# Each stamp installs one set of extras; torch comes first, so that no extra pulls another one.
.venv/torch:
	$(PYTHON) -m venv .venv
	$(RUN)/python -m pip install --quiet "$(TORCH)"
	@touch $@

.venv/%: .venv/torch pyproject.toml
	$(RUN)/python -m pip install --quiet -e ".[$(subst +,$(comma),$*)]"
	@touch $@

demo: .venv/demo
	$(RUN)/python examples/digits.py

test: .venv/test+demo
	$(RUN)/python -m pytest -n 2 --dist worksteal

test-all: .venv/test+demo
	HBP_EXAMPLES=2 $(RUN)/python -m pytest -n 2 --dist worksteal -m ""

lint: .venv/test+demo+dev
	$(RUN)/ruff check .
	PYTHON=$(RUN)/python .ci/typecheck

# Strict: a link that leads nowhere is an error (not with --quiet, which hides what is counted).
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(RUN)/python -m mkdocs build --strict
	@echo build/site/index.html

bench: .venv/demo
	$(RUN)/python -m benchmarks.compare

# Families of torchvision, timm and transformers against autograd; writes docs/zoo.md. Hours, and 6 GB to install.
zoo: TORCH = torch==2.14.1
zoo:
	test -d .venv-zoo || $(PYTHON) -m venv .venv-zoo
	.venv-zoo/bin/python -m pip install --quiet "$(TORCH)"
	.venv-zoo/bin/python -m pip install --quiet -e ".[zoo]"
	.venv-zoo/bin/python -m zoo

clean:
	rm -rf .venv .venv-zoo build dist out
