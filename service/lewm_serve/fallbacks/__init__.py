"""What answers in the planner's place, and when."""
