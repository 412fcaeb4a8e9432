"""Benchmarks of the machine at hand; each module's `measure` returns its figures.

A figure that is compared with another one is taken in the same run, in turns with it: machines are
shared, and what they give changes from minute to minute.
"""
