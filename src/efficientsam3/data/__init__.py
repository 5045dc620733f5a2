"""Finding, reading, augmenting and preprocessing images."""
