"""MONAI Label's endpoints, off the event loop and closed to what a client must not reach."""
