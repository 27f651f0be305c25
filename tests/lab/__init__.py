"""The lab: Debian's own kernels, booted anywhere, to run one script as root.

What may live here: building the image, booting it, and what the guest runs
before the script.  What may not: tests of Noctule itself (tests/kernel,
tests/e2e) and anything a real node needs (packaging/).

    python -m tests.lab run tests/lab/guest/selftest.sh
"""
