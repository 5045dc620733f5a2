"""Distillation: losses, optimisation, the export loop and the training loop."""
