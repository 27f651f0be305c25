#!/bin/bash
# Runs the tests that need a kernel; to be run in the lab. Arguments go to pytest: a folder or a
# file of tests/kernel, tests/e2e, tests/clients or tests/packaged; the first two folders by default.
set -u
[ $# -gt 0 ] || set -- tests/kernel tests/e2e
exec python3 -m pytest -p no:cacheprovider --durations=8 "$@"
