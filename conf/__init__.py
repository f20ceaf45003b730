"""Configuration: the typed roots, the yaml choices, and how errors are shown on the command line."""
