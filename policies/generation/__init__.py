"""The denoising core: paths from noise to data, solvers, time grids, couplings and prefixes."""
