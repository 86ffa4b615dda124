"""The annotation app: serves the networks of the bundle through MONAI Label."""
