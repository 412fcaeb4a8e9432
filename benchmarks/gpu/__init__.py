"""The search on a GPU: correctness, time, throughput, deadlines and energy, in eight minutes.

It needs torch, numpy and safetensors. Each section has a budget of time, ends when that is spent,
and reports what it has. A section that fails says so, and the next one runs.

    python -m benchmarks.gpu --out DIR             # on a machine with a GPU
    python -m benchmarks.gpu --small --device cpu  # the same code with tiny shapes, in a minute

It writes `gpu.json`, and `gpu.md` with the table for docs/performance.md, after each section.

The model of most sections has the paper's size and random weights. A plan is CEM, 300 candidates ×
30 iterations over a horizon of 5, between random latents. Clients are threads. Each submits a plan
to the engine, waits for it and submits the next, as the transports do for robots.
"""

from benchmarks.gpu.run import measure

__all__ = ["measure"]
