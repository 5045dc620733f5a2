"""Measuring masks against ground truth."""
