"""The attachments of this node: made, taken down, adopted, collected, kept alive on the mesh.

What may live here: the life of an attachment as the daemon leads it, and the registry that
others subscribe to. What may not: what an attachment may see (``daemon.reconcile``), or what
other nodes are told of it (``daemon.cluster``).
"""
