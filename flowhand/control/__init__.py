"""The hand: everything between a chunk and a motor."""
