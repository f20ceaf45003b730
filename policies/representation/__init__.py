"""How a policy learns its action: absolute, as differences, angles and rotations; what it gives stays physical."""
