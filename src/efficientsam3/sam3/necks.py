"""The necks between SAM3's image trunk and its detector and tracker, where they are trained with a student."""

import copy

from torch import nn

from efficientsam3.checkpoints.fitting import differences, layouts
from efficientsam3.checkpoints.necks import NeckName, TrainedNecks, digest_neck, is_trained_layer
from efficientsam3.checkpoints.reading import StateDict
from efficientsam3.runtime.errors import UserError


def trainable_copy(neck: nn.Module) -> nn.Module:
    """A copy whose levels that are read have gradients.

    Args:
        neck: transformers' `Sam3VisionNeck`.
    """
    own = copy.deepcopy(neck)
    for key, parameter in own.named_parameters():
        parameter.requires_grad_(is_trained_layer(key))
    return own


def trained_weights(neck: nn.Module) -> StateDict:
    """The weights of a neck that training may change."""
    return {key: value for key, value in neck.state_dict().items() if is_trained_layer(key)}


def load_neck(own: nn.Module, necks: TrainedNecks, name: NeckName, student: str, sam3: str) -> nn.Module:
    """SAM3's own neck with a student's trained weights, frozen.

    Args:
        own: of the SAM3, float32.
        necks: the student's.
        name: which of them.
        student: says whose they are, in an error.
        sam3: says whose `own` is.

    Raises:
        UserError: the neck was trained from another than SAM3's, or is not whole.
    """
    check_origin(digest_neck(own.state_dict()), necks, name, student, sam3)
    weights = necks.weights(name)
    if wrong := differences(layouts(weights), layouts(trained_weights(own))):
        raise UserError(f"The {name}'s neck in {student} is not whole ({wrong}): give an unchanged checkpoint.")
    found = copy.deepcopy(own)
    found.load_state_dict(found.state_dict() | weights)
    return found.requires_grad_(False)


def check_origin(digest: str, necks: TrainedNecks, name: NeckName, student: str, sam3: str) -> None:
    """Refuse a neck that was trained from another SAM3's.

    Raises:
        UserError: `digest`, of that SAM3's own neck, is not what the trained one began as.
    """
    if necks.origins[name] != digest:
        raise UserError(
            f"{student} was trained with the {name}'s neck of another SAM3 than {sam3}: give the SAM3 of its training."
        )
