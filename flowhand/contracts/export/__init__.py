"""An export as a folder: its manifest and files, and the policy and the monitor that stand in it."""
