"""Making the kernel agree with what one replica may reach: its peers, grants and slots.

What may live here: the desired state, the actual state that the kernel has, the difference between
them, and the sockets through which it is changed. What may not: computing the desired state from
policy and records (``daemon``).
"""
