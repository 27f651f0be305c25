"""This node's place on the mesh: its links, the paths to others, and the MTU of all.

What may live here: when the mesh is set up and looked at, and what follows from it. What may not:
how the kernel is told (``netconf.mesh``).
"""
