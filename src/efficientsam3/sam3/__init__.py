"""The frozen, promptable SAM3 around the image encoder, below training: detector, tracker, prompts and geometry.

`parts` names the parts, `contents` reads a model on disk in any layout, and `build` makes transformers' models of it.
`prompts` holds the prompts, `geometry` maps them to the encoder's input and answers back, and `promptable` is the image
that answers them, whatever computes; these three need no PyTorch. `torch_calls` and `text` run the models;
`efficientsam3` joins everything to `EfficientSAM3`, and `decoders` has the mask decoders alone, for any encoder's
embedding.

A new kind of prompt is a field in `prompts`, an argument of `Promptable.segment`, and its use in `torch_calls`,
`export.graphs` and `predict.onnx_sam3`.
"""
