"""Netlink: the socket, and the requests to rtnetlink, MACsec, batman-adv and traffic control.

What may live here: one module for each netlink family or kind of object, which builds requests and
reads answers. What may not: sequences of steps that make up an operation, and decisions.
"""
