"""What checking a `coco` dataset does once per split, rather than per image."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from efficientsam3.data.annotations.coco import ImageInstances, instances_path, load_instances
from efficientsam3.data.check.files import Kind, Problem
from efficientsam3.data.listing import ImageListing, names_in


def instances_by_name(data_path: Path, listing: ImageListing, problems: list[Problem]) -> dict[str, ImageInstances]:
    """A split's instances by the image's file name, empty when there is no file of them.

    Args:
        data_path: the dataset.
        listing: the split.
        problems: gets the file's wrong ids.

    Raises:
        BrokenAnnotationError: the file cannot be read, or is not in COCO's format.
    """
    path = instances_path(data_path, listing.root)
    if not len(listing) or not path.exists():
        return {}
    instances = load_instances(path)
    problems += [Problem(Kind.ID, path, problem) for problem in instances.id_problems]
    return {image.image.file_name: image for image in instances.images}


def unnamed_images(listings: Iterable[ImageListing]) -> list[Problem]:
    """Images in the splits' folders that are in no listing, since the instances file does not name them."""
    problems = []
    for listing in listings:
        folder = listing.root
        names = sorted(names_in(folder)) if folder.is_dir() else []
        stems = np.array([os.path.splitext(name)[0] for name in names], dtype=np.bytes_)
        for row in np.flatnonzero(~np.isin(stems, listing.ids)):
            problems.append(Problem(Kind.UNNAMED, folder / os.fsdecode(names[row]), "so it is not used"))
    return problems
