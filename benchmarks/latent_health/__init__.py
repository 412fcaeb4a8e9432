"""How well the embedded model's health tells faulty frames from ordinary ones, and its cost.

    python -m benchmarks.latent_health [--quick]

See `benchmarks.latent_health.measure` for what is measured.
"""
