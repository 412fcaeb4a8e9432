"""The loaded models: their backends, action statistics and fallback controllers."""
