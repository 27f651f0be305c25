#!/bin/bash
# Checks, inside the lab, that the kernel, the tools and the Python packages that it promises work.
set -u
failed=0

expect() { # WHAT COMMAND...
    local what=$1
    shift
    if output=$("$@" 2>&1); then
        printf 'ok    %s\n' "$what"
    else
        printf 'FAIL  %s: %s\n' "$what" "$output"
        failed=1
    fi
}

ip netns add selftest
in_namespace() { ip netns exec selftest "$@"; }
expect 'veth' in_namespace ip link add v0 type veth peer name v1
expect 'bridge' in_namespace ip link add br0 type bridge
expect 'macsec' in_namespace ip link add link v0 macsec0 type macsec encrypt on
expect 'geneve' in_namespace ip link add g0 type geneve id 7 remote 192.0.2.1
expect 'batman-adv' in_namespace ip link add bat0 type batadv
expect 'batctl' in_namespace batctl meshif bat0 interface add v1
expect 'nftables inet' in_namespace nft add table inet selftest
expect 'nftables bridge' in_namespace nft add table bridge selftest
ip netns del selftest

for pair in cni/main:/opt/cni/bin/noctule daemon/main:/usr/local/bin/noctuled \
    daemon/ctl/main:/usr/local/bin/noctulectl; do
    if [ -e "/opt/noctule/lib/${pair%:*}.py" ]; then
        expect "${pair#*:}" test -x "${pair#*:}"
    else
        printf '-     %s: no code yet\n' "${pair#*:}"
    fi
done

expect 'the checkout on guest disk' test -f "$NOCTULE_CHECKOUT/tests/lab/guest/selftest.sh"
if [[ $NOCTULE_BUILD == /src/* ]]; then  # in a virtual machine, not with --native
    expect '/src readable' test -r /src/tests/lab/guest/selftest.sh
    expect '/src read-only' bash -c '! touch /src/selftest 2>/dev/null'
fi
expect '/dev/stdout reopens' bash -c 'echo >/dev/stdout'

for module in msgspec pyroute2 cryptography.hazmat.primitives.ciphers aiohttp zenoh yaml \
    pytest hypothesis; do
    if seconds=$(python3 -c "
import time
start = time.perf_counter()
import $module
print(f'{time.perf_counter() - start:.2f}')"); then
        printf 'ok    import %-45s %6s s\n' "$module" "$seconds"
    else
        printf 'FAIL  import %s\n' "$module"
        failed=1
    fi
done
exit $failed
