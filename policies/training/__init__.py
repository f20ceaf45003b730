"""Training: windows of demonstrations, the trainer, and the state that a stopped run goes on from."""
