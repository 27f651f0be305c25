#!/bin/bash
# Makes a fresh Debian 12 or 13 ready for every make target: it installs tools with apt and Python
# packages into .venv.  If all of that is there already, it changes nothing and returns at once.
# Arguments: further Debian packages, for targets that need them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

packages=(
    busybox-static conntrack e2fsprogs git iproute2 kmod mmdebstrap nftables
    python3-venv qemu-system-x86 qemu-utils udev util-linux
    xz-utils zstd "$@"
)

installed() {
    dpkg-query -W -f '${Package} ${db:Status-Status}\n' "$@" 2>/dev/null |
        sed -n 's/ installed$//p' | sort
}

missing=$(comm -23 <(printf '%s\n' "${packages[@]}" | sort) <(installed "${packages[@]}"))
if [ -n "$missing" ]; then
    # shellcheck disable=SC2086  # one word per package
    echo "setup: installing" $missing >&2
    if [ "$(id -u)" != 0 ]; then
        echo "setup: run this once as root, or install those packages" >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    # Keep the packages from starting services: only their tools are wanted (policy-rc.d answers
    # 101, "forbidden").
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        trap 'rm -f $policy' EXIT
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 755 $policy
    fi
    apt-get -qq update </dev/null >&2
    # shellcheck disable=SC2086
    apt-get -qq install --no-install-recommends $missing </dev/null >&2
fi

# The image build asks apt for its Debian sources; apt knows their lists only after an update.
if [ -z "$(apt-get indextargets 'Origin: Debian' --format '$(FILENAME)')" ]; then
    apt-get -qq update </dev/null >&2
fi

requirements=(packaging/requirements.txt packaging/requirements-dev.txt)
stamp=.venv/requirements.sha256
if ! sha256sum --check --status "$stamp" 2>/dev/null; then
    echo 'setup: making .venv' >&2
    # Use Debian's own interpreter: nodes and the lab's guest run the same.
    /usr/bin/python3 -m venv --clear .venv
    .venv/bin/pip install --quiet --disable-pip-version-check \
        "${requirements[@]/#/--requirement=}" </dev/null >&2
    sha256sum "${requirements[@]}" >"$stamp"
fi
