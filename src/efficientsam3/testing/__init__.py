"""Small stand-ins for the tests and the demo.

`tiny_sam3` writes a SAM3 with random weights in `sam3.pt`'s layout; `sample_images` writes a dataset in SA-1B's format;
`slow_device` computes beside the host, as a GPU does.
"""
