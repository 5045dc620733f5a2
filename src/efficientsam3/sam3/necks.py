"""The necks between SAM3's image trunk and its detector and tracker, where they are trained with a student."""

import copy
from collections.abc import Mapping

import torch
from torch import nn

from efficientsam3.checkpoints.fitting import differences, layouts
from efficientsam3.checkpoints.necks import NeckName, TrainedNecks, digest_neck, is_trained_layer
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
    check_neck(own.state_dict(), necks, name, student, sam3)
    found = copy.deepcopy(own)
    found.load_state_dict(found.state_dict() | necks.weights(name))
    return found.requires_grad_(False)


def check_neck(own: Mapping[str, torch.Tensor], necks: TrainedNecks, name: NeckName, student: str, sam3: str) -> None:
    """Check that a trained neck can take the place of SAM3's; see `load_neck`.

    Raises:
        UserError: it was trained from another than SAM3's, whose tensors `own` are, or is not whole.
    """
    if necks.origins[name] != digest_neck(own):
        raise UserError(
            f"{student} was trained with the {name}'s neck of another SAM3 than {sam3}: give the SAM3 of its training."
        )
    expected = {key: value for key, value in own.items() if is_trained_layer(key)}
    if wrong := differences(layouts(necks.weights(name)), layouts(expected)):
        raise UserError(f"The {name}'s neck in {student} is not whole ({wrong}): give an unchanged checkpoint.")
