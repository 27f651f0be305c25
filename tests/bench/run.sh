#!/bin/bash
# Every benchmark that needs a kernel; `make bench` runs this in the lab. Arguments: the
# names of those to run, without .py; by default all but `thousand`, which takes a quarter of an hour.
# What follows -- goes to each.
set -eu
cd "${NOCTULE_CHECKOUT:?set by the lab}"
names=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    names+=("$1")
    shift
done
[ $# = 0 ] || shift
[ ${#names[@]} -gt 0 ] || names=(policy_latency first_packet cni_speed)
for name in "${names[@]}"; do
    python3 -m "tests.bench.$name" "$@"
done
