"""What container runtimes see: the CNI plugin's verbs, versions, errors and results.

Reads JSON and writes JSON; does nothing to the kernel and knows no fabric. Only `fallback`
imports ``netconf``, for the case that no daemon listens; nothing imports ``daemon``. A call that
the daemon answers imports only what tests/unit/test_cni_imports.py lists, because every import
delays the start of a container.
"""
