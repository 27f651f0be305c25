"""The attachments of this node: making, adopting, collecting and removing them.

What may live here: what the daemon does with an attachment from ADD to DEL, and the registry that
other parts subscribe to. What may not: which peers an attachment may reach (``daemon.reconcile``),
or what other nodes are told of it (``daemon.cluster``).
"""
