"""Training: recordings of an environment, training samples, the training loop, complete runs."""
