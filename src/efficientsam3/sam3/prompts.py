"""A prompt for one image, whichever model answers it."""

from dataclasses import dataclass

Box = tuple[float, float, float, float]
Point = tuple[float, float]


@dataclass(frozen=True)
class Prompt:
    """What a model is asked; one of the three is given. Pixels of the picture."""

    box: Box | None = None  # x0, y0, x1, y1 edges around one object
    point: Point | None = None  # x, y on one object
    text: str | None = None  # finds every object that it names
