"""The mesh on this node: its links, the paths to other nodes, and the MTU.

What may live here: when the mesh is brought up, looked at and repaired, and what follows from
that for paths, MTU, containers and this node's info. What may not: how devices are made and
changed in the kernel (``netconf.mesh``).
"""
