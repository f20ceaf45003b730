"""Recorded demonstrations of any format written as another."""
