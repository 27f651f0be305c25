#!/bin/bash
# Every benchmark that needs a kernel; `make bench` runs this in the lab. Arguments: the
# names of those to run, without .py; all of them by default.
set -eu
cd "${NOCTULE_CHECKOUT:?set by the lab}"
[ $# -gt 0 ] || set -- policy_latency first_packet
for name in "$@"; do
    python3 -m "tests.bench.$name"
done
