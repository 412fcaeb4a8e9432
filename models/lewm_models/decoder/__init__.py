"""A decoder: small pictures from the latents of a model that does not change."""
