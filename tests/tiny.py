"""Configuration options for the small SAM3 of `efficientsam3.testing.tiny_sam3`."""

# What the small SAM3 of `tiny_sam3_path` needs in a configuration.
TINY_OPTS = ["DATA.IMG_SIZE", "224", "DISTILL.EMBED_SIZE", "16", "DISTILL.EMBED_DIM", "64", "DATA.NUM_WORKERS", "0"]
