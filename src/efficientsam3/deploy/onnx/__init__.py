"""ONNX: a model's parts as graphs, and prompting them without PyTorch."""
