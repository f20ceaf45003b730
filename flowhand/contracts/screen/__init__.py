"""What an agent sees of a screen and what it does there."""
