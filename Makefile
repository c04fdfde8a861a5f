PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
# The demo does with a third of the packages: the first picture comes sooner.
FOR_DEMO := $(or $(wildcard $(INSTALLED)),.venv/installed-demo)
SOURCES := $(wildcard src conversion tests benchmarks examples docs/recipes train.py setup.py)

.PHONY: demo test test-slow style quality docs

demo: demo/fashion.png demo/model/model.safetensors
	$(BIN)/biggan-hf sample demo/model --images_per_class 10 --truncation 0.7 --output demo/samples.png --overwrite
	@echo "The samples, one row a digit, are in demo/samples.png."
	@echo "Next, try another truncation:  $(BIN)/biggan-hf sample demo/model --truncation 0.3 --output demo/sharp.png"
	@echo "or train on your own pictures: $(BIN)/biggan-hf train --help"

# Samples of the model that comes with the package: there within seconds.
demo/fashion.png: | $(FOR_DEMO)
	@mkdir -p demo
	$(BIN)/biggan-hf sample biggan_hf:fashion --truncation 0.7 --output $@
	@echo "Samples of the model in this package are in $@. Now a small one learns to write digits."

# The model is there after the last step, however long the steps take. After Ctrl-C the shell stays to say what is next.
demo/model/model.safetensors: | $(FOR_DEMO)
	@trap : INT; $(BIN)/biggan-hf train --preset demo --output_dir demo/model --resume_from_checkpoint latest; \
		test -f $@ || { echo 'The demo is unfinished: `make demo` goes on.'; exit 1; }

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder tests

test-slow: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow tests

.PHONY: wheel findings

# The wheel is made of the source archive, and tried in an environment that has nothing else.
FRESH := build/fresh
wheel: $(INSTALLED)
	rm -rf dist $(FRESH)
	$(BIN)/python -c 'from setuptools import build_meta; build_meta.build_sdist("dist")'
	$(BIN)/pip wheel --no-deps --no-build-isolation --wheel-dir dist dist/*.tar.gz
	$(PYTHON) -m venv $(FRESH)
	$(FRESH)/bin/pip install "$$(grep -E '^torch==' constraints.txt)"
	$(FRESH)/bin/pip install -c constraints.txt dist/*.whl
	cd $(FRESH) && bin/biggan-hf env && bin/biggan-hf sample biggan_hf:fashion --output samples.png && bin/python -c \
		'import biggan_hf.conversion.convert, importlib.resources as r; assert r.files("biggan_hf").joinpath("py.typed").is_file()'

# Each shows a surprise of another package, with pinned versions from PyPI. None is part of the tests.
findings:
	@changed=; for script in findings/*.sh; do echo "== $$script"; $$script || changed="$$changed $$script"; done; \
		test -z "$$changed" || { echo "changed, or could not be tried:$$changed"; exit 1; }

style: $(INSTALLED)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# mypy follows the link src/biggan_hf/conversion, ruff does not: each reads conversion/ once.
quality: $(INSTALLED) docs
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy $(filter-out conversion,$(SOURCES))

# The site, in site/, from the pages and the files to which they link. A broken link ends it. zensical goes through all
# files below its folder, also those that it leaves out, and takes minutes where .venv is one: so it gets a copy.
SITE := *.md LICENSE CITATION.cff conversion docs examples findings src
docs: $(INSTALLED)
	rm -rf build/pages
	mkdir -p build/pages
	cp -r $(SITE) build/pages
	$(BIN)/zensical build --strict

# torch goes first: it is the one package whose build (CPU, CUDA) an index or a wheel on disk may decide.
$(INSTALLED): EXTRA := dev
.venv/installed-demo: EXTRA := demo
$(INSTALLED) .venv/installed-demo: setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install "$$(grep -E '^torch==' constraints.txt)"
	$(BIN)/pip install -c constraints.txt -e ".[$(EXTRA)]"
	touch $@
