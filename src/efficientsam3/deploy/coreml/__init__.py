"""The image encoder as a CoreML package."""
