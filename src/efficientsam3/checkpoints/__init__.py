"""Checkpoint formats: safe reading, key maps, training checkpoints."""
