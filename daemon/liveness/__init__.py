"""Decides which other nodes are alive, suspect or lost.

What may live here: the states of other nodes and what leads from one to another, and the probes
that tell a dead daemon from a dead node. What may not: what this node does about a node that is
suspect or lost (``daemon.reconcile``).
"""
