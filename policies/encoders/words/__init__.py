"""What a policy makes of its task's text."""
