#!/bin/bash
# boot.sh NAME LOWER WORK: a machine of its own on this kernel: systemd as process 1, in the
# network namespace NAME, on an overlay in WORK over the root LOWER. It ends with this process.
set -eu
export NAME=$1 LOWER=$2 WORK=$3
mkdir -p "/sys/fs/cgroup/$NAME" "$WORK"/{upper,layer,root}
echo $$ >"/sys/fs/cgroup/$NAME/cgroup.procs"
# shellcheck disable=SC2016  # for the inner shell
exec nsenter --net="/run/netns/$NAME" \
    unshare --mount --pid --uts --ipc --cgroup --fork --kill-child bash -euc '
    hostname "$NAME"
    mount -t overlay -o "lowerdir=$LOWER,upperdir=$WORK/upper,workdir=$WORK/layer" root "$WORK/root"
    cd "$WORK/root"
    mount -t proc proc proc
    mount -t sysfs sysfs sys
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    mount -t tmpfs -o mode=755 tmpfs run
    mount -t tmpfs tmpfs tmp
    mount -t tmpfs -o mode=755 tmpfs dev
    mkdir dev/pts dev/shm
    for device in full null random tty urandom zero; do
        touch "dev/$device"
        mount --bind "/dev/$device" "dev/$device"
    done
    mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
    ln -s pts/ptmx dev/ptmx
    pivot_root . mnt
    umount -l /mnt
    # As systemd does itself where it finds no container around it.
    mount --make-rshared /
    exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd \
        --show-status=0 --log-target=journal
    ' </dev/null
