# make demo and make test need Python >= 3.11 and make, nothing else: each creates .venv and installs into it.
PYTHON ?= python3
VENV ?= .venv
# Checks shapes and types while the tests run, in the first calls of every function in every test.
TYPECHECKER := first_calls.check_first_calls
BIN := $(VENV)/bin

.PHONY: demo test test-processors docs lint install format parity-table freeze bench-data bench-steps bench-memory bench-refine bench-photon-limit bench-robustness bench-experiments bench-thick-objects bench-hopeless-fits bench-diagnose bench-position-errors bench-train bench-stitch bench-reconstruct bench-live bench-convergence bench-generators bench-options bench-network-or-iteration bench-heldout bench-prior bench-default-network bench-scale bench-trust prior fuzz bench-gpu mutate clean

demo: $(VENV)/.installed
	$(BIN)/torchptycho demo --out demo --overwrite

# One thread for each of the two processes: their threads wait for each other by spinning, which took six times as long.
# Each process begins with one half of the tests in their order, so that most fixtures are made once.
test: lint test-processors
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal --jaxtyping-packages="torchptycho,$(TYPECHECKER)"

# Tests that compare numbers most closely, with the kernels that older processors would run, on one thread and on two.
PROCESSOR_TESTS := tests/unit/physics tests/property/physics tests/unit/reconstructors/test_phase_sync.py \
  tests/parity/golden/test_golden_model.py::test_gradients_and_one_step_of_adam
test-processors: $(VENV)/.installed-test
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 0 $(PROCESSOR_TESTS)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=2 $(BIN)/python -m pytest -q -n 0 $(PROCESSOR_TESTS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site is in build/site; index.html there.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed tests/ptychodus.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,oracle]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/ptychodus.txt
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The worst error of each operator over 1,000 drawn cases (takes an hour on 2 cores).
parity-table: $(VENV)/.installed-test
	HYPOTHESIS_PROFILE=thousand PARITY_TABLE=benchmarks/results/parity.json $(BIN)/python -m pytest -q -n 0 tests/parity/live

# After a change of the oracle that passed; FROZEN.md wants a line that names it.
freeze:
	cd tf_reference && sha256sum *.py > MANIFEST.sha256 && sha256sum MANIFEST.sha256 | cut -c1-12

bench-memory: $(VENV)/.installed-test
	TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python benchmarks/memory_scaling.py

# Peers that are installed ($(BIN)/pip install --no-deps -r benchmarks/peers.txt) run beside; ten minutes on 2 cores.
bench-refine: $(VENV)/.installed
	$(BIN)/python benchmarks/peers.py

bench-photon-limit: $(VENV)/.installed
	$(BIN)/python benchmarks/photon_limit.py

# With pty-chi installed it runs next to it; half an hour on 2 cores.
bench-experiments: $(VENV)/.installed
	$(BIN)/python benchmarks/experiments.py

# With pty-chi and ptyrad installed they run next to it; half an hour.
bench-thick-objects: $(VENV)/.installed
	$(BIN)/python benchmarks/thick_objects.py

bench-robustness: $(VENV)/.installed
	$(BIN)/python benchmarks/robustness.py

# Half an hour on 2 cores.
bench-hopeless-fits: $(VENV)/.installed
	$(BIN)/python benchmarks/hopeless_fits.py

# Fifteen minutes on one idle core; goes on where it was interrupted.
bench-diagnose: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/diagnose.py

# Half an hour on 2 cores.
bench-position-errors: $(VENV)/.installed
	$(BIN)/python benchmarks/position_errors.py

# Needs 2 GB of disk where temporary files are.
bench-data: $(VENV)/.installed-test
	TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python benchmarks/data.py

bench-train: $(VENV)/.installed-test
	TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python benchmarks/train.py

bench-stitch: $(VENV)/.installed-test
	TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python benchmarks/stitch.py

bench-reconstruct: $(VENV)/.installed-test
	TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python benchmarks/reconstruct.py

bench-live: $(VENV)/.installed-test
	$(BIN)/python benchmarks/live.py
	$(BIN)/python benchmarks/detectors.py

# About a minute for each of 20 runs on 2 cores.
bench-convergence: $(VENV)/.installed
	$(BIN)/python benchmarks/convergence.py

bench-generators: $(VENV)/.installed
	$(BIN)/python benchmarks/generators.py

# Everything that a GPU has to show; eight minutes at most, without a network. On a machine without one:
# $(BIN)/python benchmarks/gpu.py --emulated
bench-gpu: $(VENV)/.installed-test
	$(BIN)/python benchmarks/gpu.py

bench-options: $(VENV)/.installed
	$(BIN)/python benchmarks/options.py

bench-network-or-iteration: $(VENV)/.installed
	$(BIN)/python benchmarks/network_or_iteration.py

# The weights that the package ships: hours of simulation and training; runs/prior is resumed when it exists.
prior: $(VENV)/.installed
	$(BIN)/torchptycho pretrain --out runs/prior --minutes 74 $(if $(wildcard runs/prior/prior.ckpt),--resume)
	cp runs/prior/prior.safetensors torchptycho/models/prior/prior.safetensors

# An hour on 2 idle cores.
bench-heldout: $(VENV)/.installed
	$(BIN)/python benchmarks/heldout.py

# An hour on one core; with BM3D where `bm3d` is installed.
bench-prior: $(VENV)/.installed
	$(BIN)/python benchmarks/prior.py

# Ten minutes on one core.
bench-default-network: $(VENV)/.installed
	$(BIN)/python benchmarks/default_network.py

# Five minutes on 2 cores, and 700 MB of disk where temporary files are.
bench-scale: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/scale.py

# Error bars and predictions of planned scans against simulated ones, after the diagnoses; ten minutes more on one core.
bench-trust: $(VENV)/.installed bench-diagnose
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/trust.py

bench-steps: $(VENV)/.installed
	$(BIN)/python benchmarks/steps.py

# Mutated scan files of every format through the readers, in processes of their own (about two minutes).
fuzz: $(VENV)/.installed-test
	$(BIN)/python tests/fuzz_readers.py --count 10000

# Small changes of the numeric code that no test notices; twenty minutes and more on 2 cores.
mutate: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[mutation]'
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutation.py --list

clean:
	rm -rf mutants $(VENV) demo build dist
