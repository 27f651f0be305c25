"""The daemon's unix socket, which serves requests in HTTP and JSON.

What may live here: the server, the shapes of its messages, and the collecting of ``status``. What
may not: any decision. Each request is passed on to the part of the daemon that serves it.
"""
