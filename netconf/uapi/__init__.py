"""Declarations from the kernel's headers: constants, and message classes in pyroute2's style.

What may live here: declarations, under the names that the headers use. What may not: sockets, and
anything particular to Noctule; `macsec` and `batadv` are written so that pyroute2 could adopt them.
"""
