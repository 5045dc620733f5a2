"""Datasets of images: finding, reading, augmenting and preprocessing them.

An image's way to the encoder: `layouts` knows how datasets arrange their folders, and `listing` has the ids of a split
(`split` chooses it where folders do not). `images` reads a file as RGB, `augment` changes it by a seed, `preprocess`
resizes and normalises it, and `loader` does all of this in batches. `find` is for single files and folders.
`annotations` reads masks, `check` finds broken files, and `sa1b` downloads and arranges SA-1B. `parallel` spreads work
over processes.
"""
