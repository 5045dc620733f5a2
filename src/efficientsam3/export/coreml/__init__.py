"""CoreML: `run` exports a `request` to a package with the image encoder, which `program` converts and reads back."""
