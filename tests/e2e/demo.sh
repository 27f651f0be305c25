#!/bin/bash
# What `make demo` runs as root on a kernel that has batman-adv, MACsec and GENEVE.
set -eu
cd "${NOCTULE_CHECKOUT:?set by the lab}"
exec python3 -m tests.e2e.demo
