"""``noctulectl``: what an operator types. Talks to one daemon's socket; makes keys offline."""
