"""This node's part of the mesh: its links to other nodes, bat0, and the bridge of the containers.

What may live here: checking the ``mesh`` section of the configuration, and making the kernel's
devices and routes agree with it. What may not: deciding when that is done and telling other nodes
about it (``daemon.mesh``); containers (``netconf.attach``).
"""
