"""Recorded demonstrations in HDF5 files: robomimic and Minari."""
