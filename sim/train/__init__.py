"""Training of the pocket policies."""
