"""What ordinary latents, steps and streams of a model look like, and where an alarm begins."""
