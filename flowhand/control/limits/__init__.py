"""What limits a command: braking before a bound, and a workspace."""
