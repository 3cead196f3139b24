# make demo: everything from a fresh clone to the held-out table. make test: the tests. make help: the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
AFP := $(BIN)/python -m afp
SOURCES := $(shell find afp data/demo.toml -name '*.py' -o -name '*.toml')
NOTEBOOKS := $(wildcard notebooks/[0-9]*.ipynb)
DETECTORS := linear-probe metadata spectrum vlm-zero-shot
TRAINED := clip-zero-shot clip-prompt clip-adapter clip-adaptprompt clip-lora clip-finetune vlm-prompt vlm-lora
COMMA := ,
SPACE := $(subst ,, )
# Where it is set, each of the notebooks compiles the libraries that it imports anew, which takes it ten seconds.
unexport PYTHONDONTWRITEBYTECODE
DEMO := 00_start_here 01_prepare_data 04_evaluate_held_out 09_draw_paper_figures
TESTS := $(wildcard tests/*.py tests/benchmarks/*.py notebooks/solutions/*.ipynb data/published/* data/*.csv.gz)

.PHONY: help setup demo test results robustness bench lint faults lab notebooks gallery clean
.DEFAULT_GOAL := help
.PRECIOUS: .make/%.csv

help:
	@echo "make setup      create $(VENV) with the tested environment"
	@echo "make demo       build the demo benchmark, fit the detectors, run four notebooks, print the table"
	@echo "make test       lint, types, tests"
	@echo "make bench      speed and memory as ratios, an hour: the table of docs/benchmarks.md"
	@echo "make faults     what was tried to break it, how often, what held: docs/faults.md"
	@echo "make results    fit all twelve detectors, keep their scores in data/results/, print the README's table"
	@echo "make robustness score them under JPEG and blur, keep the scores in data/robustness.csv.gz"
	@echo "make lab        open the workbook in JupyterLab"
	@echo "make gallery    executed notebooks and figures as static pages in gallery/"
	@echo "make notebooks  run every notebook in full (up to an hour) and keep its outputs in notebooks/"
	@echo "make clean      delete what was built, but not the downloads"

setup: $(VENV)/.stamp

$(VENV)/.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# Compiling all of it would take a minute; Python compiles what it imports.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[all,test]'
	@touch $@

data/demo/manifest.csv: $(VENV)/.stamp data/demo.toml
	$(AFP) demo
	@touch $@

.make/%.csv: data/demo/manifest.csv $(SOURCES)
	@mkdir -p .make
	$(AFP) fit --detector $* --fold all | tee .make/$*.log
	@cp "$$(sed -n 's/^scores: //p' .make/$*.log)" $@

# The first one reads all blocks of all images; the others find them.
.make/fit: .make/vlm-zero-shot.csv $(DETECTORS:%=.make/%.csv)
	@touch $@

executed/%.ipynb: notebooks/%.ipynb .make/fit
	$(AFP) run $<

demo: .make/fit
	@OMP_NUM_THREADS=1 $(MAKE) --no-print-directory -j 2 $(DEMO:%=executed/%.ipynb)
	$(AFP) evaluate $(DETECTORS:%=.make/%.csv)
	@echo "figures:" && ls executed/figures/*.png
	@echo "runs:" && ls -d runs/*-*/

test: .make/test
	@tail -n 1 .make/test.log

.make/test: data/demo/manifest.csv $(SOURCES) $(NOTEBOOKS) $(TESTS) README.md data/README.md
	@mkdir -p .make
	$(MAKE) --no-print-directory lint
	@# One thread a process, UMAP's too: two that wait for each other on busy cores are many times slower.
	@# The types take a minute, beside the tests.
	$(BIN)/mypy > .make/mypy.log 2>&1 & types=$$!; \
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal > .make/test.log 2>&1; \
	status=$$?; wait $$types || status=1; cat .make/mypy.log .make/test.log; exit $$status
	@touch $@

results: $(DETECTORS:%=.make/%.csv) $(TRAINED:%=.make/%.csv)
	for d in $(DETECTORS) $(TRAINED); do gzip -n -9 -c .make/$$d.csv > data/results/$$d.csv.gz; done
	$(AFP) evaluate data/results/*.csv.gz --markdown

robustness: .make/fit
	@# Its remedy trains the first detector anew, which must be linear-probe. Towers that are tuned look at every image anew.
	$(AFP) run 06 -p perturbations jpeg:75,jpeg:50,blur:1,blur:2 -p kinds super-resolution,other-family \
		-p detectors $(subst $(SPACE),$(COMMA),$(DETECTORS) $(filter-out clip-lora clip-finetune,$(TRAINED)))
	gzip -n -9 -c runs/robustness/scores.csv > data/robustness.csv.gz

lint: $(VENV)/.stamp
	$(BIN)/ruff check afp tests data/build notebooks
	$(BIN)/ruff format --check afp tests data/build
	$(BIN)/lint-imports

bench: data/demo/manifest.csv
	$(BIN)/python tests/benchmarks/bench.py

faults: $(VENV)/.stamp
	$(BIN)/python tests/faults_table.py docs/faults.md

lab: data/demo/manifest.csv
	JUPYTER_CONFIG_PATH=$(CURDIR)/.jupyter $(BIN)/jupyter lab --ServerApp.root_dir=$(CURDIR) notebooks/00_start_here.ipynb

notebooks: .make/fit
	$(AFP) run --all --in-place

gallery: .make/fit $(NOTEBOOKS:notebooks/%=executed/%)
	$(AFP) gallery

clean:
	rm -rf .make executed gallery runs data/cache data/demo data/weights
