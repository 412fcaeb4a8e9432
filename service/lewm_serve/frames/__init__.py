"""From the frames of requests to latents: look up in the cache, or decode and encode once."""
