"""Checking a dataset: every image and annotation, in several processes."""
