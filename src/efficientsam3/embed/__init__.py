"""Embedding the dataset: the teacher over every image, once, into a store."""
