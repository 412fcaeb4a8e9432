"""Benchmarks of the machine at hand: the `measure` of a module returns its figures."""
