"""Configuration: the typed roots, the yaml choices, and how errors are told on the command line."""
