"""Comparison of two checkouts of this project: the same answers, and paired timings.

    python -m benchmarks.revisions OLD_CHECKOUT NEW_CHECKOUT [--rounds N]

Only public interfaces are used: `.venv/bin/lewm` of each checkout, REST and gRPC.
"""
