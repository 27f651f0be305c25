# Every target sets up what it needs on a fresh Debian 12 or 13, as root.
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
# KERNEL=6.12 (Debian 13's, the default), 6.1 (Debian 12's) or sid (the newest, fetched when asked
# for) is which one is booted;
# TIMEOUT=seconds limits each boot, CPUS=number is what it gets.

TIMEOUT ?= 2700
CPUS    ?=
KERNEL  ?=
NATIVE  ?=
ARGS    ?=

VENV    := .venv/bin
LAB     := $(VENV)/python -m tests.lab
HERE    := $(filter-out 0,$(NATIVE))
RUN     := $(LAB) run --timeout $(TIMEOUT) $(if $(CPUS),--cpus $(CPUS)) \
           $(if $(KERNEL),--kernel $(KERNEL)) $(if $(HERE),--native)
TYPED   := $(wildcard cni netconf daemon) tests/lab tests/parts.py tests/vanishing.py
PARTS   := $(VENV)/python -m tests.parts

# With what each part needs: a group for each word, and + between parts of one group.
ALL      = lint unit $(GUEST)
# Kernels other than the lab's own.
BOOTED  := kernel-6.1:image+ipv4:image
GUEST   := image packages libcni released \
	e2e:image+clients:image,libcni+kernel:image+packaged:image,packages+releases:image,released$(if $(HERE),,+$(BOOTED))

# The package, and what it is made of.
VERSION := $(shell sed -n 's/^VERSION = "\(.*\)"/\1/p' daemon/version.py)
DEB     := dist/noctule_$(VERSION)_amd64.deb
SOURCES := $(shell find cni netconf daemon packaging -type f -not -name '*.pyc') pyproject.toml

.DEFAULT_GOAL := help
.PHONY: help setup demo test parts lint unit fuzz guest kernel kernel-6.1 ipv4 e2e clients packaged \
        releases released soak libcni bench lab shell image packages install clean

help:
	@sed -n '/^\#/!q; s/^\# \{0,1\}//p' Makefile

setup:
	@tests/lab/setup.sh

demo: setup
	@$(RUN) tests/e2e/demo.sh $(ARGS)

# All parts, whatever becomes of the others; the last lines say what became of each.
test: setup
	@$(PARTS) $(ALL)

# For .ci/run, whose last line has to be the sums and not make's own remark on a failure.
parts: setup
	@echo $(ALL)

# All three, whatever each finds.
lint: setup
	@status=0; \
	$(VENV)/ruff check . || status=1; \
	$(VENV)/ruff format --check . || status=1; \
	$(VENV)/mypy --strict $(TYPED) || status=1; \
	exit $$status

unit: setup
	$(VENV)/python -m pytest tests/unit tests/compat

fuzz: setup
	$(VENV)/python -m tests.fuzz $(TARGET) --cases $(or $(CASES),1000000) --seed $(or $(SEED),0)

# What needs a kernel, two machines at a time, the longest first.
guest: setup
	@$(PARTS) $(GUEST)

kernel e2e clients packaged releases: setup
	$(RUN) tests/lab/guest-tests.sh tests/$@ $(ARGS)

# What talks to the kernel must do so on the older release's as well.
kernel-6.1: setup
	$(RUN) --kernel 6.1 tests/lab/guest-tests.sh tests/kernel $(ARGS)

# A kernel that was told to have no IPv6 is another kernel.
ipv4: setup
	$(RUN) --append ipv6.disable=1 tests/lab/guest-tests.sh tests/kernel/test_ipv4.py $(ARGS)

clients soak: libcni

releases: released

# The release before this one, out of git, for tests that set it beside this one.
released: setup
	@$(VENV)/python -m tests.compat.released

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
	@$(LAB) shell $(if $(KERNEL),--kernel $(KERNEL))

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
