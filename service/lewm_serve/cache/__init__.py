"""Latents by name, so that a frame seen before is not encoded again."""
