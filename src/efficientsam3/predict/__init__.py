"""Segmenting images: files, ONNX directories, the browser page."""
