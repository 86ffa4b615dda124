"""Plans a configuration for a dataset that nobody has configured: what it is like, and what follows from that."""
