"""Everything that touches the kernel, and nothing that decides.

Links, MACsec, batman-adv, GENEVE, addresses, neighbours, nftables, namespaces, and the
life of one attachment. May be imported by ``daemon`` and by ``cni``'s fallback; imports
neither. No policy, no peers' opinions, no network I/O of its own.
"""
