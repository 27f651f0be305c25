"""The unix socket: requests in, answers out, in HTTP and JSON.

What may live here: the server, the shapes of its messages, and what ``status`` tells. What may
not: any decision. Requests go to the part of the daemon that serves them.
"""
