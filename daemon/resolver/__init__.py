"""``noctule-resolver``: the name server in each container's namespace.

It is a process of its own, so that names work while the daemon is down. All that it knows is in
files that the daemon and the executable write (state files and ``names``), so it can start again
within milliseconds. ``answer`` answers one query and is pure; ``nameserver`` and ``server`` do the
I/O; ``client`` is used by the daemon. Imports neither the fabric nor the kernel's sets: this
process reads what containers send, so it should contain little code.
"""
