"""The engine: it owns the accelerator and runs everything that the models compute.

It knows models only as backends and is given plain values: tensors, numbers and solver settings.
It needs torch, NumPy, safetensors and nothing of the server above it.
"""
