#!/bin/bash
# Builds build/libcni, the reference library's client, from Debian's own packages.
# Does nothing, at once, where it is already built from this source and those packages.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."

source=tests/clients/libcni
packages=(golang-go golang-github-appc-cni-dev)
tests/lab/setup.sh "${packages[@]}"

stamp=$({ cat $source/*; dpkg-query -W "${packages[@]}"; } | sha256sum)
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
# The library has GC and STATUS from its 1.2 on.
tags=
if grep -qs GCNetworkList /usr/share/gocode/src/github.com/containernetworking/cni/libcni/api.go; then
    tags=gc_status
fi
# Debian's copy of the library, and no network.
export GO111MODULE=off GOPATH=/usr/share/gocode CGO_ENABLED=0
go build -tags "$tags" -trimpath -ldflags '-s -w' -o build/libcni ./$source
echo "$stamp" >build/libcni.stamp
