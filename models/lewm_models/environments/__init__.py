"""Environments that models are trained and measured in, independent of models and of serving."""
