"""Those who watch the control of a robot, each in a thread of its own."""
