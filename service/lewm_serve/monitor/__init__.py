"""How far what is served lies from what the model was trained on."""
