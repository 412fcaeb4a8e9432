"""Measuring a planner in closed loop: protocols, episodes, reports, and camera faults.

A planner is a function from two frames to actions, so the same code measures a model in this
process, a model behind a server, or an oracle.
"""
