"""Prompts for one image, in its pixels, whichever model and runtime answers them; and phrases as tokens. No PyTorch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.parts import VISUAL_PROMPT


class PromptError(UserError):
    """A prompt cannot be asked: it does not fit its image, or the text encoder."""


Box = tuple[float, float, float, float]  # x0, y0, x1, y1 edges
Point = tuple[float, float]  # x, y


@dataclass(frozen=True)
class ConceptPrompt:
    """A prompt for the detector, which finds every object that fits."""

    text: str | None = None  # a short noun phrase; None where there are boxes alone
    boxes: tuple[Box, ...] = ()  # examples
    labels: tuple[int, ...] = ()  # 1 (more like this) or 0 (not like this) for each box

    def __post_init__(self) -> None:
        _check_labels(self.labels, len(self.boxes), "box")
        try:
            (self.text or "").encode()
        except UnicodeEncodeError as error:
            raise UserError(f"The text prompt {self.text!r} is not UTF-8: write it in UTF-8.") from error

    @property
    def name(self) -> str:
        """A word for it in outputs."""
        return self.text or "box"

    @property
    def labelled_boxes(self) -> tuple[tuple[Box, int], ...]:
        """Boxes with their labels."""
        return tuple(zip(self.boxes, self.labels, strict=True))

    @property
    def labelled_points(self) -> tuple[tuple[Point, int], ...]:
        """Points with their labels: none."""
        return ()

    @property
    def phrase(self) -> str:
        """The text, or the one that Meta's code gives the detector where there are boxes alone."""
        return VISUAL_PROMPT if self.text is None else self.text


@dataclass(frozen=True)
class ObjectPrompt:
    """A prompt for the tracker or for SAM's mask decoder, which segment one object."""

    points: tuple[Point, ...] = ()
    labels: tuple[int, ...] = ()  # 1 (on the object) or 0 (off it) for each point
    box: Box | None = None  # around the object
    # The answer to an earlier prompt that this one refines: its low-resolution logits (h, w), see `decoders.Answer`.
    mask: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        _check_labels(self.labels, len(self.points), "point")

    @property
    def name(self) -> str:
        """A word for it in outputs."""
        return "points" if self.points else "object box"

    @property
    def labelled_boxes(self) -> tuple[tuple[Box, int], ...]:
        """Boxes with their labels: the box, if there is one."""
        return () if self.box is None else ((self.box, 1),)

    @property
    def labelled_points(self) -> tuple[tuple[Point, int], ...]:
        """Points with their labels."""
        return tuple(zip(self.points, self.labels, strict=True))

    @property
    def corners(self) -> tuple[Point, ...]:
        """The box's top left and bottom right corner, if there is a box."""
        return () if self.box is None else (self.box[:2], self.box[2:])


Prompt = ConceptPrompt | ObjectPrompt


def _check_labels(labels: tuple[int, ...], count: int, what: str) -> None:
    if len(labels) != count or not set(labels) <= {0, 1}:
        raise UserError(f"{count} {what} prompts have the labels {list(labels)}: give 1 or 0 for each.")


def pad_phrase(text: str, ids: Sequence[int], length: int, pad_id: int) -> tuple[Any, Any]:
    """Token ids and attention mask of one phrase, each (1, length) int64.

    Args:
        text: the phrase, for the errors.
        ids: its tokens, start and end included.
        length: positions of the text encoder.
        pad_id: the token that fills the remaining positions.

    Raises:
        PromptError: the phrase is empty, or longer than the text encoder takes.
    """
    if not text.strip():
        raise PromptError("The text prompt is empty: name something, such as 'a dog'.")
    if len(ids) > length:
        raise PromptError(f"The text prompt {text!r} has {len(ids)} tokens, at most {length} fit: shorten it.")
    row = np.full((1, length), pad_id, dtype=np.int64)
    row[0, : len(ids)] = ids
    return row, (np.arange(length) < len(ids)).astype(np.int64)[None]
