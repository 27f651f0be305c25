"""``noctuled``, the daemon of one node, with the resolver and ``noctulectl``.

It decides what each container may reach; ``netconf`` changes the kernel. Pure logic lives in
``daemon.model``. The other rooms connect it to sockets, files, the kernel and the fabric, and
``daemon.node`` puts them together. Directly here are only modules that several rooms share
(configuration, log, YAML). Never imports ``cni``.
"""
