"""How well the embedded model's health tells faults from ordinary frames, and what that costs."""
