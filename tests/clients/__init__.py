"""Who calls us, unmodified, on nodes of the lab: runtimes, libcni, chains of plugins."""
