"""From the plan to the kernel, and back: planning, programming, auditing.

What may live here: when to plan, what to change and in which order, and what differs. What may
not: what the plan is (``daemon.model.plan``), or how the kernel is told (``netconf.program``).
"""
