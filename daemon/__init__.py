"""``noctuled``: decides, and asks ``netconf`` to act.

Pure logic lives in ``daemon.model``; everything here is an adapter (sockets, files,
kernel, fabric) or the one place where they meet (``daemon.node``). Never imports ``cni``.
"""
