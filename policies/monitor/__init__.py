"""How far a policy is from what it learned: scores, a density model and their calibration."""
