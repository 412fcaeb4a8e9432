"""The predictor in bfloat16 as code of our own, compiled on the machine that runs it."""
