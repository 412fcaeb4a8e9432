"""Calibration: what a model's latents look like on ordinary data, and the anomaly limits."""
