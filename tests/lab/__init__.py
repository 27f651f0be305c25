"""The lab: Debian 12's own kernel, booted anywhere, to run one script as root.

What may live here: building the image, booting it, and what the guest runs
before the script.  What may not: tests of Noctule itself (tests/kernel,
tests/e2e) and anything a real node needs (packaging/).

    python -m tests.lab run tests/lab/selftest.sh
"""
