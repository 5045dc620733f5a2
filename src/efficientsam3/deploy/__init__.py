"""Former import paths, kept for code that was written against them; see `efficientsam3.merge`."""
