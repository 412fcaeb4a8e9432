"""Benchmarks of the machine at hand. Each module's `measure` returns its figures as a dictionary."""
