"""All code that reads or changes the kernel; what it should change to is decided elsewhere.

What may live here: links, MACsec, batman-adv, GENEVE, addresses, neighbours, nftables, namespaces,
and the life of one attachment. What may not: policy, records of other nodes, and traffic with them;
the only frames sent from here are those of ``netconf.frames``. ``daemon`` and the fallback of
``cni`` import this package; it imports neither.
"""
