#!/bin/bash
# The guest's process 1.  The initramfs has mounted the image, /run and /dev and
# unpacked the payload; this finishes the machine, runs /run/lab/command and
# tells the host how it ended.
export PATH=/opt/cni/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LANG=C.UTF-8

mount -t proc proc /proc
# The kernel's own modules, which are not the image's; what is mounted below needs some.
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
# As on any node: it renames links and rewrites their MACs behind one's back.
/lib/systemd/systemd-udevd --daemon

# The ports appear some time after their driver, under the number of a device.
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

# A port can be opened once only, and scripts do reopen /dev/stdout; so they get
# a pipe, and a cat carries it to the port.
mkfifo /run/lab/{out,err,done}
exec 8<>/run/lab/done 9>"${port}3"
{ cat </run/lab/out >"${port}1"; echo >&8; } 9>&- &
{ cat </run/lab/err >"${port}2"; echo >&8; } 9>&- &

printf 'started\n' >&9
setsid --wait bash /run/lab/command </dev/null >/run/lab/out 2>/run/lab/err 8>&- 9>&-
status=$?
# What the script wrote must arrive first.  A daemon it left behind may hold the
# pipes open for ever, so this has a limit.
read -r -t 2 -u 8 _ && read -r -t 2 -u 8 _
printf 'exit %d\n' "$status" >&9
# The host now ends the machine.
exec sleep infinity
