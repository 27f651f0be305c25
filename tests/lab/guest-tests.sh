#!/bin/bash
# Every test that needs a kernel; runs in the lab.
set -u
paths=()
for folder in tests/kernel tests/e2e; do
    [ -d "$folder" ] && paths+=("$folder")
done
python3 -m pytest -p no:cacheprovider "${paths[@]}" "$@"
