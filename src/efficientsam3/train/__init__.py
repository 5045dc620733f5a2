"""Training a student: objective, targets, loop, checkpoints."""
