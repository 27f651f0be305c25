"""The lab: runs one script as root in a virtual machine with one of Debian's own kernels.

What may live here: building the image, booting it, and what the guest runs before the script; also
running a script on this machine's own kernel (``native``). What may not: tests of Noctule itself
(tests/kernel, tests/e2e) and anything that a real node needs (packaging/).

    python -m tests.lab run tests/lab/guest/selftest.sh
"""
