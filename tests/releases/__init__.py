"""Clusters, daemons and executables of this release and the one before, on a real kernel.

The shapes that they exchange are compared by tests/compat, without one.
"""
