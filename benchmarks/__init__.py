"""One script for each claim of the README: `python -m benchmarks.<name> --help`."""
