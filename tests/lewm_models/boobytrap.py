"""A module that no code may import: public checkpoints made by the tests name it."""

raise AssertionError("something named in a checkpoint was imported")
