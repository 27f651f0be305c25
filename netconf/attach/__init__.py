"""The life of one attachment in the kernel, and its state file.

What may live here: attach, detach and check, the state folder with its locks and addresses, and
whether another attachment could be made. What may not: peers and policy (``netconf.program``).
"""
