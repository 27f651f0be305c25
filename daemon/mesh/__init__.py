"""This node's place on the mesh: its links, the paths to others, and the MTU of all.

What may live here: when the mesh is brought up, looked at and repaired, and what follows from
that for paths, MTU, containers and what this node says of itself. What may not: how the kernel
is told (``netconf.mesh``).
"""
