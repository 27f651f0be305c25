"""``noctulectl``, the operator's command line.

What may live here: the commands, what they print, the signing of policy, and the making of keys.
What may not: anything that a running daemon needs. It uses one daemon's socket; keys and signatures
are made without a daemon, on the operator's machine.
"""
