"""Exporting a model to other runtimes: what they share is here, each runtime is a folder.

`source` reads a model, `graphs` takes it apart into modules from tensors to tensors whose names and shapes are `ports`,
`calibration` feeds them images, `parity` compares them with PyTorch, and `float16` knows what must stay in float32. A
further runtime is a further folder with a `request` and a `run`, like `onnx` and `coreml`.
"""
