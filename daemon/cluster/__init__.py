"""This node's part in the cluster: exchanging, publishing and saving records.

What may live here: the exchange of records, membership, certificates and their renewal,
publishing and saving records, and the rollout of policy. What may not: what a record means
(``daemon.model``), how it travels (``daemon.fabric``), which nodes live (``daemon.liveness``), or
the kernel.
"""
