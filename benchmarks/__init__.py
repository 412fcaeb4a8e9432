"""Benchmarks: how fast this machine plans, compared with the project's targets.

They run from the repository and are not installed:

    python -m benchmarks                        # all benchmarks, about an hour
    python -m benchmarks plan_speed overload    # some of them; --list names them all
    python -m benchmarks.transport              # one of them, its report as JSON

Three programs are not in that list, because they fill other documents or need two checkouts:

    python -m benchmarks.latent_health          # false alarms and detected faults
    python -m benchmarks.fallbacks              # robots in closed loop under faults
    python -m benchmarks.revisions OLD NEW      # speed and bits of two checkouts

Machines are shared, and their speed changes from minute to minute. So values that are compared are
measured in the same run, in turns.
"""

import os

# As `lewm` does, so that models in this process run like those of a server. OpenMP reads the
# variable once, when torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
