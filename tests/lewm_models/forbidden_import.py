"""The checkpoints of the tests name this module; an import must not import it."""

raise AssertionError("something that a checkpoint names was imported")
