"""Acquiring SA-1B: downloading its archives and arranging them as a dataset."""
