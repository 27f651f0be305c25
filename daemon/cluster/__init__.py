"""This node among the others: what they say, what it says, who is alive, who belongs.

What may live here: the exchange of records, liveness, membership, publishing and saving records,
and the rollout of policy. What may not: what a record means (``daemon.model``), how it travels
(``daemon.fabric``), or the kernel.
"""
