"""Netlink: one socket, and what is said through it to rtnetlink, MACsec, batman-adv and qdiscs.

What may live here: one module for each netlink family or kind of object, which builds requests and
reads answers. What may not: an order of steps, or a decision.
"""
