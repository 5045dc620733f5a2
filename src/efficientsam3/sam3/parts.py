"""The parts of a SAM3 that `--keep` names. The student is in every merged model and needs no name."""

from collections.abc import Iterable
from typing import Literal

from efficientsam3.checkpoints.sam3_keys import TEXT_PREFIX, TRACKER_PREFIXES
from efficientsam3.runtime.errors import UserError

Part = Literal["image", "text", "tracker"]
PARTS: dict[Part, str] = {
    "image": "the detector: boxes, and text with its encoder",
    "text": "the text encoder, 354M parameters: text prompts",
    "tracker": "the tracker and its video memory: points",
}
# The phrase that the detector is given when there is no text. Its features (3, width: the start, the word, the end)
# replace the text encoder in a model that is merged without one.
VISUAL_PROMPT = "visual"
VISUAL_PROMPT_KEY = TEXT_PREFIX + "visual_prompt"


def part_of(key: str) -> Part:
    """The part that a native SAM3's tensor outside the trunk belongs to."""
    if key.startswith(TEXT_PREFIX):
        return "text"
    return "tracker" if key.startswith(TRACKER_PREFIXES) else "image"


def parse_parts(names: Iterable[str]) -> frozenset[Part]:
    """Check names of parts.

    Raises:
        UserError: a name is unknown, or the selection answers no prompt.
    """
    parts = frozenset(name for name in PARTS if name in set(names))
    unknown = set(names) - set(PARTS)
    if unknown:
        raise UserError(f"--keep {sorted(unknown)[0]!r} is not a part of SAM3: choose from {', '.join(PARTS)}.")
    if not parts & {"image", "tracker"}:
        raise UserError("--keep needs image or tracker, or no prompt can be answered: add one of them.")
    if "text" in parts and "image" not in parts:
        raise UserError("--keep text needs image too: the detector is what answers text prompts.")
    return parts
