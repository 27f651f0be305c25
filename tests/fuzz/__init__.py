"""Fuzzing: whatever comes in, a value or one clear error comes out, soon, and nothing stays.

1. One module per way in (`targets`). Each draws a case from a random generator and runs the
   real code on it, in this process: no stand-ins for code of ours.
2. Allowed is a value, or an error of the one hierarchy with a positive code and a sentence
   (`target.outcome`). Any other exception, a broken promise (`target.Wrong`), or more than a
   second of CPU for one case is a failure.
3. After the cases, as many descriptors, threads and files exist as before (`run.Traces`).
4. Case n of a target and a seed is always the same: ``--case n`` repeats it alone.
5. Cases are valid documents with a few changes to tree, text and bytes (`mutate`), because
   what is random from the start rarely gets past the first check.

``python -m tests.fuzz --help``; a small part of it runs as tests/unit/test_fuzz.py.
"""

TARGETS: dict[str, int] = {
    "cni_config": 330,
    "cni_environment": 250,
    "cni_main": 40,
    "node_yaml": 4,
    "policy_yaml": 3,
    "api_bodies": 200,
    "api_requests": 10,
    "fabric_records": 100,
    "fabric_store": 3,
    "state_files": 6,
    "resolver_queries": 60,
}
"""Modules of ``targets``, and how many of the cases each gets: the fast ones get most."""
