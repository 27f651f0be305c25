"""Which other nodes live: what is heard of each, and what follows from it.

What may live here: suspicion and loss of nodes, and the probes that tell a dead daemon from a dead
node. What may not: what is done about it (``daemon.reconcile``).
"""
