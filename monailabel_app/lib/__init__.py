"""Adapters between the bundle and MONAI Label's tasks."""
