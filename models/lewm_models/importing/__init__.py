"""Import of the field's public checkpoints as a model and its card."""

from lewm_models.importing.importer import import_checkpoint

__all__ = ["import_checkpoint"]
