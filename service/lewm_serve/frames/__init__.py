"""From the frames of requests to latents: decode, look up in the cache, encode once."""
