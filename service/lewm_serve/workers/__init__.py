"""Where engines run: in processes of their own that start again when they die, or in a thread."""
