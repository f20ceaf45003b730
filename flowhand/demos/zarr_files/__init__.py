"""Demonstrations in zarr files, as Diffusion Policy keeps them."""
