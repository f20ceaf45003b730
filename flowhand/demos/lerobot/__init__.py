"""LeRobot data sets: versions 3.0, 2.1 and 2.0 are read, version 3.0 is written."""
