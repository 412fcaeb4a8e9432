"""What runs a model: frames to latents, candidates to predicted latents."""
