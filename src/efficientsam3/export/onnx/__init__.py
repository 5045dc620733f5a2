"""Exporting to ONNX."""
