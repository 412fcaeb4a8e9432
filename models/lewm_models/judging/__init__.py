"""Judging a model on recorded episodes that it has not seen, without a simulator."""
