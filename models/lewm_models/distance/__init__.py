"""A learned distance: how many action blocks a goal is away, through doors and around walls."""
