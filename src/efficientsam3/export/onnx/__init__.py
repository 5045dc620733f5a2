"""ONNX: `run` exports a `request` to a directory of graphs with a `manifest`, `write` makes the files, and `variants`
the image encoder in float16 and int8. The manifest is read without PyTorch.
"""
