"""How well a planner reaches goals: protocols, closed-loop episodes, figures.

What plans is the caller's affair, a function from two frames to actions, so a model is judged the
same way in process, behind a server, or replaced by an oracle.
"""
