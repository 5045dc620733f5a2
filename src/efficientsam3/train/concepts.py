"""Which phrases an image is asked in an epoch: a function of SEED, the epoch and the image's id alone."""

from collections.abc import Sequence
from itertools import cycle

import numpy as np

from efficientsam3.data.augment import augmentation_seed
from efficientsam3.data.objects import ImageObjects
from efficientsam3.train.prompts import Shown

_STREAM = 1  # keeps these draws apart from those of `draw_prompts`


def draw_phrases(shown: Shown, phrases: Sequence[str], count: int, seed: int) -> list[list[str]]:
    """Draw `count` phrases for each image: by turns a noun of an object in it, and a phrase that is none.

    Each is another one while there are more. An image without named objects is asked any of the phrases, and one that
    has all of them these alone.

    Args:
        shown: what the images show.
        phrases: all that can be asked, the nouns of all objects among them.
        count: phrases an image.
        seed: see above.
    """
    return [
        _draw(objects, phrases, count, np.random.default_rng((augmentation_seed(seed, image_id), shown.epoch, _STREAM)))
        for image_id, objects in zip(shown.image_ids, shown.objects, strict=True)
    ]


def _draw(
    objects: ImageObjects | None, phrases: Sequence[str], count: int, generator: np.random.Generator
) -> list[str]:
    nouns = () if objects is None else objects.nouns
    others = [phrase for phrase in phrases if phrase not in nouns]
    first = int(generator.integers(2))
    drawn = [cycle([names[place] for place in generator.permutation(len(names))]) for names in (nouns, others) if names]
    return [next(drawn[(first + turn) % len(drawn)]) for turn in range(count)]
