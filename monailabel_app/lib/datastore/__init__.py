"""Where images are and labels go."""
