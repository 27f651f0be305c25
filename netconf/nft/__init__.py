"""nftables: two rulesets as declarations, made and changed over raw nfnetlink.

``container_ruleset`` and ``host_ruleset`` declare the two tables, built from ``expressions`` and
``tables``; ``elements`` declares what each set holds. ``ruleset`` loads a table, compares it with
its declaration (``readback``) and replaces it (``replacement``). Otherwise only elements change,
through the socket in ``wire`` with the messages of ``encoding``; ``host`` does so for the node's
filter. Neither nft nor its library is used.

What may live here: tables, sets and elements. What may not: peers and policy, which
``netconf.program.programmer`` turns into elements.
"""
