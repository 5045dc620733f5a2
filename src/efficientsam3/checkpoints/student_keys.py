"""The published students' keys and timm's: the same tensors under two sets of names, mapped both ways.

The published layout bears the names of each architecture's authors under `backbone.model.`; a `Student` bears timm's
under `backbone.`. The head is the same in both: the published one `head.{0,1,3}.`, the one called `fpn`
`head.{lateral,refine}.{0,1,2}.`, finest map first, `head.expand.` and `head.output.`, and `fpn4` the same under
`head.fpn.`. The named students are
in `models.students`; here are those that were published under their authors' names.
"""

from collections.abc import Mapping
from functools import cache

import torch

from efficientsam3.runtime.errors import UserError

PUBLISHED_PREFIX = "backbone.model."
BACKBONE_PREFIX = "backbone."
HEAD_PREFIX = "head."
Pairs = tuple[tuple[str, str], ...]

_REPVIT_DEPTHS = {"repvit_m0_9": (2, 2, 14, 2), "repvit_m1_1": (2, 2, 12, 2), "repvit_m2_3": (6, 6, 34, 2)}
_FAMILIES = ("repvit", "tiny_vit", "efficientvit")
# Start of a key that only one family has, in the published layout and in timm's.
_MARKS = {
    "repvit": ("backbone.model.features.", "backbone.stem.conv1."),
    "tiny_vit": ("backbone.model.patch_embed.", "backbone.patch_embed."),
    "efficientvit": ("backbone.model.input_stem.", "backbone.stem_in_conv."),
}
# Channels of the last map, by which the members of a family differ.
_CHANNELS = {
    "repvit": {384: "repvit_m0_9", 512: "repvit_m1_1", 640: "repvit_m2_3"},
    "tiny_vit": {320: "tiny_vit_5m", 448: "tiny_vit_11m", 576: "tiny_vit_21m"},
    "efficientvit": {128: "efficientvit_b0", 256: "efficientvit_b1", 384: "efficientvit_b2"},
}
PUBLISHED_BACKBONES = tuple(name for members in _CHANNELS.values() for name in members.values())


def _repvit_block(feature: int, block: str) -> Pairs:
    published = f"features.{feature}."
    return (
        (published + "token_mixer.0.", block + "token_mixer."),
        (published + "token_mixer.1.", block + "se."),
        (published + "channel_mixer.m.0.", block + "channel_mixer.conv1."),
        (published + "channel_mixer.m.2.", block + "channel_mixer.conv2."),
    )


def _repvit_downsample(feature: int, stage: int) -> Pairs:
    """Two of the published features, a block and the downsampling itself, are one module in timm."""
    published, downsample = f"features.{feature + 1}.", f"stages_{stage}.downsample."
    return (
        *_repvit_block(feature, downsample + "pre_block."),
        (published + "token_mixer.0.", downsample + "spatial_downsample."),
        (published + "token_mixer.2.", downsample + "channel_downsample."),
        (published + "channel_mixer.m.0.", downsample + "ffn.conv1."),
        (published + "channel_mixer.m.2.", downsample + "ffn.conv2."),
    )


def _repvit(backbone: str) -> Pairs:
    pairs: Pairs = (("features.0.0.", "stem.conv1."), ("features.0.2.", "stem.conv2."))
    feature = 1
    for stage, depth in enumerate(_REPVIT_DEPTHS[backbone]):
        if stage > 0:
            pairs += _repvit_downsample(feature, stage)
            feature += 2
        for index in range(depth):
            pairs += _repvit_block(feature, f"stages_{stage}.blocks.{index}.")
            feature += 1
    return pairs


# A downsampling belongs to the stage before it in the published layout, to the stage after it in timm's.
_TINY_VIT: Pairs = (
    ("patch_embed.seq.0.", "patch_embed.conv1."),
    ("patch_embed.seq.2.", "patch_embed.conv2."),
    *((f"layers.{stage}.blocks.", f"stages_{stage}.blocks.") for stage in range(4)),
    *((f"layers.{stage}.downsample.", f"stages_{stage + 1}.downsample.") for stage in range(3)),
)
_EFFICIENTVIT: Pairs = (
    ("input_stem.op_list.0.", "stem_in_conv."),
    *((f"input_stem.op_list.{index + 1}.", f"stem_res{index}.") for index in range(2)),
    *((f"stages.{stage}.op_list.", f"stages_{stage}.blocks.") for stage in range(4)),
)
_SUFFIXES: dict[str, Pairs] = {"tiny_vit": ((".c.weight", ".conv.weight"),)}


def family(backbone: str) -> str | None:
    """The family of a published backbone; None for any other."""
    if backbone not in PUBLISHED_BACKBONES:
        return None
    return next(name for name in _FAMILIES if backbone.startswith(name))


@cache
def _pairs(backbone: str) -> Pairs:
    match family(backbone):
        case "repvit":
            return _repvit(backbone)
        case "tiny_vit":
            return _TINY_VIT
        case "efficientvit":
            return _EFFICIENTVIT
    raise UserError(f"Backbone {backbone} has no published layout: only {', '.join(PUBLISHED_BACKBONES)} have.")


def _translate(key: str, backbone: str, source: int, prefixes: tuple[str, str]) -> str:
    """Translate one key from layout `source` (0 published, 1 timm) to the other."""
    if key.startswith(HEAD_PREFIX):
        return key
    name = key.removeprefix(prefixes[source])
    pair = next((pair for pair in _pairs(backbone) if name.startswith(pair[source])), None)
    if pair is None or not key.startswith(prefixes[source]):
        raise UserError(f"{key} is not a tensor of a {backbone} student: give a checkpoint of that backbone.")
    name = pair[1 - source] + name.removeprefix(pair[source])
    for suffixes in _SUFFIXES.get(str(family(backbone)), ()):
        if name.endswith(suffixes[source]):
            name = name.removesuffix(suffixes[source]) + suffixes[1 - source]
    return prefixes[1 - source] + name


def published_to_timm(key: str, backbone: str) -> str:
    """timm's name of a published student's tensor, head included.

    Raises:
        UserError: the backbone has no published layout, or no such tensor.
    """
    return _translate(key, backbone, 0, (PUBLISHED_PREFIX, BACKBONE_PREFIX))


def timm_to_published(key: str, backbone: str) -> str:
    """The inverse of `published_to_timm`."""
    return _translate(key, backbone, 1, (PUBLISHED_PREFIX, BACKBONE_PREFIX))


def is_published_layout(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether a student's state dict bears the published names."""
    return any(key.startswith(PUBLISHED_PREFIX) for key in tensors)


def identify_published(tensors: Mapping[str, torch.Tensor], width: int | None) -> str | None:
    """Which published backbone a student's state dict belongs to, in either layout; None if it is none of them.

    Args:
        tensors: the state dict.
        width: channels of the backbone's last map, see `models.heads.backbone_width`.
    """
    for name, marks in _MARKS.items():
        if any(key.startswith(marks) for key in tensors):
            return _CHANNELS[name].get(width or 0)
    return None


def is_fused(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether no BatchNorm is left in a student's state dict, which each named student has before it is fused."""
    return not any(key.endswith(".running_mean") for key in tensors)
