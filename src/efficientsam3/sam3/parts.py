"""The parts of a SAM3 that `--keep` names. The student is no part: it is in every merged model."""

from collections.abc import Iterable
from typing import Literal, get_args

from efficientsam3.checkpoints.sam3_keys import TEXT_PREFIX, TRACKER_PREFIXES
from efficientsam3.runtime.errors import UserError

Part = Literal["image", "text", "tracker"]
PARTS: tuple[Part, ...] = get_args(Part)
MEANING: dict[Part, str] = {
    "image": "the detector: boxes, and text with its encoder",
    "text": "the text encoder, 354M parameters: text prompts",
    "tracker": "the interactive predictor and the video memory: points",
}
# Stands for the text encoder where that is left out: the features (3, width) of the prompt "visual", which the
# detector is given when there is no text. Its three tokens are the start, the word, and the end.
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
        UserError: an unknown name, or a selection that answers no prompt.
    """
    parts = frozenset(name for name in PARTS if name in set(names))
    unknown = set(names) - set(PARTS)
    if unknown:
        raise UserError(f"--keep {sorted(unknown)[0]!r} is no part of SAM3: choose from {', '.join(PARTS)}.")
    if not parts & {"image", "tracker"}:
        raise UserError("--keep needs image or tracker, or no prompt can be answered: add one of them.")
    if "text" in parts and "image" not in parts:
        raise UserError("--keep text needs image too: the detector is what answers text prompts.")
    return parts
