"""Makes the kernel agree with the plan: planning, programming and auditing.

What may live here: when to plan, what to change and in which order, and finding what differs. What
may not: what the plan is (``daemon.model.plan``), or how a change is made in the kernel
(``netconf.program``).
"""
