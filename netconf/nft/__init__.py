"""nftables: two rulesets as readable templates, and their elements over raw nfnetlink.

``container.nft`` and ``host.nft`` are loaded by ``ruleset``; afterwards only elements change,
by ``wire``; ``elements`` says what each set holds, ``host`` speaks to the node's filter.
Knows sets and elements, not peers or policy: that is ``netconf.program.programmer``'s.
"""
