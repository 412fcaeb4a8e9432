"""Answers as the description shows them."""

EXAMPLE_PLAN = {
    "request_id": "5c0963f4d2004efc8e3a961e808d652f",
    "model": "two-room",
    "model_version": "9f2c41d07ab35e68",
    "backend": "torch",
    "precision": "float32",
    "actions": [[0.98, -0.12], [0.95, -0.08]],
    "action_block": 5,
    "cost": 3.71,
    "status": "completed",
    "iterations": 10,
    "candidates": 1281,
    "solver": {
        "name": "cem",
        "samples": 128,
        "iterations": 10,
        "elites": 16,
        "horizon": 5,
        "tolerance": 0.0,
    },
    "seed": 7,
    "latent_ids": {
        "frames": ["5d1e90c47fb24a6f8e02b3d59c7a1164"],
        "goal": "a07c6be1f05d4c2b93d8e4471c60f2a5",
    },
    "health": {
        "status": "ok",
        "latent_norm": 11.2,
        "latent_norm_zscore": 0.4,
        "surprise": None,
        "sigreg": None,
        "reasons": [],
        "latent_mahalanobis": 10.4,
    },
    "fallback": None,
    "timing_ms": {"queue": 0.1, "decode": 0.9, "encode": 4.2, "solve": 310.5, "total": 315.8},
}
