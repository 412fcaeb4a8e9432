"""The engine: one thread that owns the accelerator and runs everything the model computes."""
