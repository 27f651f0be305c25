"""``noctule-resolver``: the name server in each container's namespace.

A process of its own, so that names outlive the daemon: all it knows lies in files that the
daemon and the executable write (state files and ``names``), and starting again costs it
milliseconds. `answer` decides, and is pure; `attachment` and `server` do the I/O; `client` is
the daemon's end. Imports neither the fabric nor the kernel's sets: what runs here reads what
containers send, so it should be little.
"""
