"""What looks at a student after each epoch of its training."""

from typing import cast

import torch
from matplotlib.figure import Figure
from torch import nn

from efficientsam3.config.schema import TrainConfig
from efficientsam3.data.listing import list_images
from efficientsam3.distill.plan import TrainPlan, open_store
from efficientsam3.distill.train import Observers
from efficientsam3.evaluate.features import feature_pairs
from efficientsam3.evaluate.pictures import feature_figure
from efficientsam3.evaluate.probe import build_probe
from efficientsam3.models.student import Student

_PICTURES = 3


def training_observers(config: TrainConfig, device: torch.device) -> Observers:
    """The mask probe where PROBE.DECODER names a decoder, and pictures of features; for the main process.

    Raises:
        UserError: the probe's decoder or the dataset's annotations are missing, or do not fit the store.
    """
    probe, settings = None, config.PROBE
    if settings.DECODER is not None:
        store, data = open_store(config), config.DATA.DATA_PATH
        probe = build_probe(settings.DECODER, store, data, settings.IMAGES, settings.OBJECTS, device, config.SEED)

    def pictures(student: nn.Module, plan: TrainPlan) -> Figure:
        listing = list_images(config.DATA.DATA_PATH, "val", config.DATA.DATASET, limit=config.DATA.NUM_SAMPLES)
        return feature_figure(feature_pairs(cast(Student, student), plan.store, listing, _PICTURES))

    return Observers(probe=probe, pictures=pictures)
