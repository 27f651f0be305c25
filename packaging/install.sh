#!/bin/bash
# Installs Noctule from this checkout, on a node or into a node's root.
#
#   PREFIX/lib      cni, netconf and daemon, compiled
#   PREFIX/deps     the Python packages they import
#   /opt/cni/bin/noctule, /usr/local/bin/noctuled, /usr/local/bin/noctulectl,
#   /usr/local/bin/noctule-resolver
#   /etc/systemd/system/, a unit for each daemon; neither enabled nor started
#
# It may run on a node that is starting containers: the code and each executable are replaced by one
# rename, so no process meets half of an installation.
set -euo pipefail

usage() {
    echo "usage: install.sh [--prefix /opt/noctule] [--no-deps] [--root DIR]" >&2
    exit 2
}

prefix=/opt/noctule root='' deps=yes
while [ $# -gt 0 ]; do
    case $1 in
        --prefix) prefix=${2:?}; shift 2 ;;
        --root)
            root=$(realpath "${2:?}")
            # realpath resolves a magic link such as /proc/PID/root to this machine's own root.
            [ "$root" != / ] || {
                echo "install.sh: --root $2 is this machine's own root; leave --root out" >&2
                exit 2
            }
            shift 2
            ;;
        --no-deps) deps=no; shift ;;
        *) usage ;;
    esac
done
[[ $prefix == /* ]] || usage

checkout=$(realpath "$(dirname "${BASH_SOURCE[0]}")/..")
# The interpreter that runs the executables.
python=/usr/bin/python3
# The interpreter that compiles for it. PYTHON names another one if the root to install into has
# another version of Python than this machine.
compiler=${PYTHON:-$python}
read -ra pip <<<"${PIP:-$python -m pip}"

new=$(mktemp -d -p "$(mkdir -p "$root$prefix" && echo "$root$prefix")" .new-XXXXXX)
trap 'rm -rf "$new"' EXIT
chmod 755 "$new"

# swap NAME: make PREFIX/NAME a link to what was prepared in $new/NAME, and remove what it led to
# before.  It is a link because a link can be replaced in one step and a folder cannot.
swap() {
    local name=$1 release old
    release=$(mktemp -d -p "$root$prefix" "$name-XXXXXX")
    chmod 755 "$release"
    old=$(readlink "$root$prefix/$name" || true)
    mv -T "$new/$name" "$release"
    ln -s "$(basename "$release")" "$new/link"
    # A folder in place of the link: made by an older install.sh, or by the lab's image.
    if [ -d "$root$prefix/$name" ] && [ ! -L "$root$prefix/$name" ]; then
        rm -rf "${root:?}$prefix/$name"
    fi
    mv -T "$new/link" "$root$prefix/$name"
    if [ -n "$old" ]; then
        rm -rf "${root:?}$prefix/$old"
    fi
}

# executable PATH MODULE: write a script that runs main() of MODULE and looks for modules in our
# folders first. To start fast and independently of the caller, Python gets -I, which ignores
# the caller's environment, and -S, which does not import site.
executable() {
    local path=$root$1 module=$2
    [ -f "$root$prefix/lib/${module//.//}.py" ] || return 0
    mkdir -p "$(dirname "$path")"
    cat >"$new/executable" <<EOF
#!$python -IS
import sys

sys.path.insert(0, "$prefix/lib")
sys.path += ["$prefix/deps", "/usr/lib/python3/dist-packages"]

from $module import main

sys.exit(main())
EOF
    chmod 755 "$new/executable"
    # Copy it beside its destination first: a rename is atomic only within one file system.
    mv "$new/executable" "$(dirname "$path")/.$(basename "$path").new"
    mv "$(dirname "$path")/.$(basename "$path").new" "$path"
}

mkdir "$new/lib"
for package in cni netconf daemon; do
    if [ -d "$checkout/$package" ]; then
        cp -R "$checkout/$package" "$new/lib/"
    fi
done
find "$new/lib" -name __pycache__ -prune -exec rm -rf {} +
# Imports need not check whether the source is newer (unchecked-hash), which saves them a stat: only
# this script changes these files. -s and -p give the path that tracebacks show.
"$compiler" -m compileall -q --invalidation-mode unchecked-hash -s "$new" -p "$prefix" "$new/lib"

if [ "$deps" = yes ]; then
    "${pip[@]}" install --quiet --no-compile --target "$new/deps" \
        -r "$checkout/packaging/requirements.txt"
    "$compiler" -m compileall -q --invalidation-mode unchecked-hash -s "$new" -p "$prefix" "$new/deps"
    swap deps
fi
swap lib

executable /opt/cni/bin/noctule cni.main
executable /usr/local/bin/noctuled daemon.main
executable /usr/local/bin/noctulectl daemon.ctl.main
executable /usr/local/bin/noctule-resolver daemon.resolver.main

for unit in noctuled.service noctule-resolver.service; do
    sed 's|^ExecStart=/usr/bin/|ExecStart=/usr/local/bin/|' "$checkout/packaging/$unit" >"$new/$unit"
    install -D -m 644 "$new/$unit" "$root/etc/systemd/system/$unit"
done
