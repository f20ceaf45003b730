"""Plots, videos and HTML pages."""
