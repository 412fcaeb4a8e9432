"""The path of a request: validate, latents, health, search, answer.

The planner decides. Other packages compute.
"""
