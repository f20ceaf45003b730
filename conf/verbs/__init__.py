"""What can be set of each verb: one file each, with its root class, its choices of components and its help."""
