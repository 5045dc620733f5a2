"""Segmenting images: `request` has the options, `files` prompts images, and `outputs` writes the answers.

`onnx_sam3` is the model of an ONNX directory, with the calls of `EfficientSAM3` and without PyTorch; `serve` serves
such a directory to a browser, in which `page/` computes the same.
"""
