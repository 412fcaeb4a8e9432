"""Probes: what the named states of a robot are, read from a latent."""
