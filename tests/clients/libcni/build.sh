#!/bin/bash
# Builds build/libcni, the reference library's client, from Debian's own packages.
# Does nothing, at once, where it is already built from this source and those packages.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."

source=tests/clients/libcni
packages=(golang-go golang-github-appc-cni-dev)
tests/lab/setup.sh "${packages[@]}"

stamp=$({ cat $source/main.go $source/build.sh; dpkg-query -W "${packages[@]}"; } | sha256sum)
if [ -x build/libcni ] && [ "$stamp" = "$(cat build/libcni.stamp 2>/dev/null)" ]; then
    exit
fi
echo 'libcni: building' >&2
mkdir -p build
unformatted=$(gofmt -l $source)
if [ -n "$unformatted" ]; then
    echo "libcni: run gofmt -w $unformatted" >&2
    exit 1
fi
# Debian's copy of the library, and no network.
export GO111MODULE=off GOPATH=/usr/share/gocode CGO_ENABLED=0
go build -trimpath -ldflags '-s -w' -o build/libcni ./$source
echo "$stamp" >build/libcni.stamp
