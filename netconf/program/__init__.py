"""What one replica may see, made true in the kernel of its namespace.

What may live here: the desired state, what the kernel actually holds, the difference, and the
sockets through which it is changed. What may not: where the desired state comes from.
"""
