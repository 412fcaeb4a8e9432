"""The path of a request: validate, latents, health, search, answer.

The planner scores the latents of frames itself. The engine runs the models and the searches.
"""
