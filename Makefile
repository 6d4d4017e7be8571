# Everything runs in .venv, made once and reused. PYTHON picks the interpreter (3.11 - 3.13).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo demo-steering bloom-concepts test test-slow check format bench clean help

help:
	@echo "make demo           pretrain a small multilingual model on real text with live metrics, then write its report"
	@echo "make demo-steering  clamp concept neurons of the demo model and judge what it writes"
	@echo "make bloom-concepts label the concept sentences for configs/suites/bloom_*.yaml"
	@echo "make test           all quick tests (offline, CPU)      make test-slow   the marked slow ones"
	@echo "make check          ruff and mypy                       make bench       speed and memory against baselines"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "error: $(PYTHON) is not Python 3.11 - 3.13; say make PYTHON=python3.11"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

# A second `make demo` goes on with or shows the run that is there; rm -r runs/demo starts afresh.
demo: $(READY) runs/demo-concepts.parquet
	$(BIN)/python -m train fit --config configs/train/demo.yaml
	$(BIN)/python -m analysis report runs/demo
	@echo "study:    docs/first_light.md: five seeds and 32 times the text, enough to decide what ten minutes cannot"

# Twelve concepts with many sentences in ten languages, by name, since the lists for steering ask for some of them. The
# training leaves these sentences out.
runs/demo-concepts.parquet: data/embedded_cdda10.parquet data/concepts.tsv | $(READY)
	$(BIN)/python -m analysis label --texts $< --out $@ --concepts armor eat fire large leather metal \
	  road_vehicle small steel water weather_f wood --min_positives 50 --cap 50 --negatives 3 --complete --independent

# The concepts of configs/analyses/bloom.yaml and its kin, for the languages that the embedded sample and BLOOM share.
bloom-concepts: runs/bloom-concepts.parquet
runs/bloom-concepts.parquet: data/embedded_cdda10.parquet data/concepts.tsv | $(READY)
	$(BIN)/python -m analysis label --texts $< --out $@ --languages en es pt zh --independent

# Text and concepts of configs/analyses/xglm_257m.yaml: the trained languages that the medium corpus has.
build/corpus/out/aligned.parquet: | $(READY)
	$(BIN)/python -m data.corpus fetch
	$(BIN)/python -m data.corpus build
runs/xglm_257m-concepts.parquet: build/corpus/out/aligned.parquet data/concepts.tsv | $(READY)
	$(BIN)/python -m analysis label --texts $< --out $@ --languages en es fr id pt vi zh --independent

demo-steering: $(READY)
	$(BIN)/python -m analysis steer --config configs/analyses/steering.yaml

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu and not optin"

test-slow: $(READY)
	$(BIN)/python -m pytest -m "slow and not gpu and not optin"

check: $(READY)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(READY)
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

bench: $(READY)
	$(BIN)/python tests/benchmarks/run.py

clean:
	rm -rf $(VENV) build runs results .pytest_cache .mypy_cache .ruff_cache *.egg-info
