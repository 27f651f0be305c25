"""The node's half of the mesh: its links to other nodes, bat0, and the bridge of the containers.

What may live here: what the configuration may say, how the kernel is made to agree with it, and
how it is read back. What may not: when that happens, and what others are told of it
(``daemon.mesh``); containers (``netconf.attach``).
"""
