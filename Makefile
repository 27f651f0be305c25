# Every target sets up what it needs on a fresh Debian 12, as root.
#
#   make demo                        a service mesh, encrypted, in one machine
#   make test                        all tests, some of them on a real kernel
#   make soak                        the end-to-end tests, with crowds of full size
#   make fuzz [CASES=1000000] [TARGET=...] [SEED=0]
#                                    whatever comes in: tests/fuzz
#   make lab SCRIPT=file [ARGS=...]  run a script as root in a fresh machine
#   make shell                       look around in one
#   make packages                    the .deb, in dist/
#
# NATIVE=1 uses this machine's own kernel instead of booting one;
# TIMEOUT=seconds limits each boot, CPUS=number is what it gets.

TIMEOUT ?= 2700
CPUS    ?=
NATIVE  ?=
ARGS    ?=

VENV    := .venv/bin
LAB     := $(VENV)/python -m tests.lab
HERE    := $(filter-out 0,$(NATIVE))
RUN     := $(LAB) run --timeout $(TIMEOUT) $(if $(CPUS),--cpus $(CPUS)) $(if $(HERE),--native)
TYPED   := $(wildcard cni netconf daemon) tests/lab

# The package, and what it is made of.
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
DEB     := dist/noctule_$(VERSION)_amd64.deb
SOURCES := $(shell find cni netconf daemon packaging -type f -not -name '*.pyc') pyproject.toml

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint unit fuzz guest kernel ipv4 e2e clients packaged soak libcni bench \
        lab shell image packages install clean

help:
	@sed -n '/^\#/!q; s/^\# \{0,1\}//p' Makefile

setup:
	@tests/lab/setup.sh

demo: setup
	@$(RUN) tests/e2e/demo.sh $(ARGS)

# One after the other, whatever -j says: what fails first should be what is read.
test: setup
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory unit
	@$(MAKE) --no-print-directory guest

lint: setup
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy --strict $(TYPED)

unit: setup
	$(VENV)/python -m pytest tests/unit

fuzz: setup
	$(VENV)/python -m tests.fuzz $(TARGET) --cases $(or $(CASES),1000000) --seed $(or $(SEED),0)

# Two machines at a time, for two processors, the longest first; each says all it has to say when
# it is done. Each gets one: emulated processors of a machine stop one another at every change of
# a page table, and with two each a process took 1.5 times as long to start.
guest: image $(DEB) libcni
	@$(MAKE) --no-print-directory -j2 --output-sync=target CPUS=1 \
		e2e clients kernel packaged $(if $(HERE),,ipv4)

kernel e2e clients packaged: setup
	$(RUN) tests/lab/guest-tests.sh tests/$@ $(ARGS)

# A kernel that was told to have no IPv6 is another kernel.
ipv4: setup
	$(RUN) --append ipv6.disable=1 tests/lab/guest-tests.sh tests/kernel/test_ipv4.py $(ARGS)

clients soak: libcni

packaged bench soak: $(DEB)

libcni: setup
	@tests/clients/libcni/build.sh

soak: TIMEOUT = 7200
soak: setup
	$(RUN) tests/lab/guest-tests.sh tests/e2e tests/clients tests/packaged --full $(ARGS)

bench: setup
	@$(RUN) tests/bench/run.sh $(ARGS)

lab: setup
	@test -n "$(SCRIPT)" || { echo 'usage: make lab SCRIPT=file [ARGS=...]' >&2; exit 2; }
	@$(RUN) $(SCRIPT) $(ARGS)

shell: setup
	@$(LAB) shell

image: setup
	@$(LAB) image

packages: $(DEB)

$(DEB): $(SOURCES) | setup
	packaging/build.sh $@

install: setup
	PIP="$(VENV)/python -m pip" packaging/install.sh

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
