"""What container runtimes see: the CNI plugin's verbs, versions, errors and results.

JSON in, JSON out. May import ``netconf`` in `fallback` alone, for the case that no daemon
listens; never ``daemon``. No kernel and no fabric here, and on the way to the daemon no
import that costs a container's start more than it gives: tests/unit/test_cni_imports.py
holds the list.
"""
