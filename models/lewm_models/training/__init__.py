"""From nothing to a trained model: collected recordings, the training loop, the calibration."""
