"""nftables: two rulesets as declarations, made and changed over raw nfnetlink.

``container_ruleset`` and ``host_ruleset`` say what each holds, in the words of ``expressions`` and
``tables``; ``ruleset`` loads them; afterwards only elements change, by ``wire``; ``elements`` says
what each set holds, ``host`` speaks to the node's filter. nft and its library take no part.
Knows sets and elements, not peers or policy: that is ``netconf.program.programmer``'s.
"""
