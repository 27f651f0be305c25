#!/bin/bash
# The guest's process 1.  Before it starts, the initramfs has mounted the image, /run and /dev and
# unpacked the payload.  This script mounts the rest, runs /run/lab/command and reports its exit
# status to the host.
export PATH=/opt/cni/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LANG=C.UTF-8

mount -t proc proc /proc
# The modules of the kernel that was booted, on a disk of their own, since the image can be booted
# with several kernels.  The mounts below need some of them.
mkdir -p /lib/modules
mount -t ext4 -o ro /dev/vdc /lib/modules
mount -t sysfs sysfs /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
mkdir -p /run/netns /run/lock /src
ln -sfn /proc/self/fd /dev/fd
ln -sfn /proc/self/fd/0 /dev/stdin
ln -sfn /proc/self/fd/1 /dev/stdout
ln -sfn /proc/self/fd/2 /dev/stderr
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=524288 src /src
hostname lab
printf '127.0.0.1 localhost lab\n::1 localhost\n' >/etc/hosts
ip link set lo up
# udev runs as on any node, because it renames links and changes their MACs there as well.
/lib/systemd/systemd-udevd --daemon

# The ports appear some time after their driver is loaded; the device's number in their names is not
# known before.
until port=$(compgen -G '/dev/vport*p3'); do sleep 0.01; done
port=${port%3}

# shellcheck source=/dev/null
. /run/lab/environment

if [ -e /run/lab/interactive ]; then
    exec 9>"${port}3"
    printf 'started\n' >&9
    setsid --ctty --wait bash -c '. /run/lab/interactive; exec bash' <>/dev/hvc0 >&0 2>&0 9>&-
    printf 'exit %d\n' $? >&9
    exec sleep infinity
fi

# A port can be opened only once, but scripts may reopen /dev/stdout.  So the script writes to
# pipes, and one cat for each copies them to the ports.
mkfifo /run/lab/{out,err,done}
exec 8<>/run/lab/done 9>"${port}3"
{ cat </run/lab/out >"${port}1"; echo >&8; } 9>&- &
{ cat </run/lab/err >"${port}2"; echo >&8; } 9>&- &

printf 'started\n' >&9
setsid --wait bash /run/lab/command </dev/null >/run/lab/out 2>/run/lab/err 8>&- 9>&-
status=$?
# Wait until both cats have copied everything, because the host ends the machine after the report.
# A daemon that the script left behind may keep the pipes open for ever, so the wait has a limit.
read -r -t 2 -u 8 _ && read -r -t 2 -u 8 _
printf 'exit %d\n' "$status" >&9
# Process 1 must not exit; the host ends the machine now.
exec sleep infinity
