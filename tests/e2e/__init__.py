"""Whole clusters on a real kernel: three nodes, real daemons, the real executable."""
