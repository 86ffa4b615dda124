"""Active learning: which image a client is offered next."""
