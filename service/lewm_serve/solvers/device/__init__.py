"""Searches of many plans at once, as tensor programs that stay on the device of the model."""
