"""What is known and what follows from it: values in, values out.

Records and who may sign them, policy, the store, weights and slots, the plan. No sockets,
no clock, no randomness; time is an argument. The one exception is ``identity``, whose
single function ``read`` reads PEM files. May import ``netconf.errors``, ``netconf.names``
and ``netconf.program.desired``, and nothing else of ``netconf``.
"""
