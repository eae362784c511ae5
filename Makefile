# make demo: sets up .venv and runs the main job. make test: sets it up and runs the tests, five minutes on 2 cores.
# make test-all: also those that are slow, and more random examples of each test that draws them. make docs: build/site.
# TORCH chooses the build of torch: make test TORCH=torch==2.13.0
TORCH ?= torch
PYTHON ?= python3
RUN := .venv/bin
comma := ,
BRIDGES := laplace-torch==0.3 curvlinops-for-pytorch==3.0.1 asdfghjkl==0.1a4 backpack-for-pytorch==1.7.1 \
	unfoldNd==0.2.3 einops==0.8.2 einconv==0.1.0 linear-operator==0.6.1 jaxtyping==0.3.11 \
	wadler-lindig==0.1.8 torchmetrics==1.9.0 lightning-utilities==0.15.3 opt-einsum==3.4.0 opacus==1.6.0 \
	kronfluence==1.0.1 accelerate==1.15.0 safetensors==0.8.0 pyyaml==6.0.4 packaging==26.4 psutil==7.2.2

.PHONY: demo test test-all fuzz lint docs bench zoo clean

# Each stamp installs one set of extras; torch comes first, so that no extra pulls another one.
.venv/torch:
	$(PYTHON) -m venv .venv
	$(RUN)/python -m pip install --quiet "$(TORCH)"
	@touch $@

.venv/%: .venv/torch pyproject.toml
	$(RUN)/python -m pip install --quiet -e ".[$(subst +,$(comma),$*)]"
	@touch $@

# What bridges lead to, without what it would bring: laplace-torch asks for torchvision, and that for another torch.
.venv/bridges: .venv/torch pyproject.toml
	$(RUN)/python -m pip install --quiet --no-deps $(BRIDGES)
	@touch $@

demo: .venv/demo
	$(RUN)/python examples/digits.py

test: .venv/test+demo
	$(RUN)/python -m pytest -n 2 --dist worksteal

test-all: .venv/test+demo+transformers .venv/bridges
	HBP_EXAMPLES=2 $(RUN)/python -m pytest -n 2 --dist worksteal -m "" --durations 25

# 2,000 random models, losses and changes of Python state against autograd: an hour. Goes on where it was stopped.
fuzz: .venv/test+demo
	$(RUN)/python -m tests.fuzz

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
