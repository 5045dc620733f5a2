"""Annotation formats, all read as untrusted input.

`sa1b` reads SA-1B's files, one per image, and defines the records that evaluation uses. `coco` turns COCO's instances
files into the same records. `rle` decodes the run lengths in which both store masks, and `encode` makes them; `deepest`
finds the pixel furthest inside a mask.
"""
