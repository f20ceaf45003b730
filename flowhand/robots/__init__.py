"""The body: robots, and simulated worlds in their place."""
