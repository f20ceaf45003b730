"""What a training reads of recorded data again and again, kept as it reads it: frames, rows and statistics."""
