"""The daemon's pure logic: records and who may sign them, policy, the store, weights, the plan.

Values come in and values go out: no sockets, no clock, no randomness; time is an argument. The
one exception is ``identity``, whose function ``read`` reads PEM files. May import
``netconf.errors``, ``netconf.names`` and ``netconf.program.desired``, and nothing else of
``netconf``.
"""
