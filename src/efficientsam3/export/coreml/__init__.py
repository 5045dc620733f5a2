"""Exporting to CoreML."""
