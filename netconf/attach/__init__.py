"""The life of one attachment in the kernel, and its state file.

What may live here: attach, detach and check; resizing, repair and the later addition of IPv6; the
state folder with its locks and the choice of addresses; CNI's STATUS. What may not: peers and
policy (``netconf.program``).
"""
