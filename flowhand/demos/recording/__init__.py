"""Recording: demonstrations written while they happen, so that whatever stops the recorder, what was finished stays."""
