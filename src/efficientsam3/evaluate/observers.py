"""What looks at a student after each epoch of its training."""

from typing import cast

import torch
from matplotlib.figure import Figure
from torch import nn

from efficientsam3.config.schema import TrainConfig
from efficientsam3.evaluate.masks.encoders import Encoder, ModuleEncoder, StoreEncoder
from efficientsam3.evaluate.masks.ground_truth import Selection, open_ground_truth
from efficientsam3.evaluate.masks.open_models import check_fits
from efficientsam3.evaluate.masks.probe import MaskProbe
from efficientsam3.evaluate.report.features import feature_pairs
from efficientsam3.evaluate.report.figures import feature_figure
from efficientsam3.models.student import Student
from efficientsam3.models.teacher import Teacher, build_teacher
from efficientsam3.sam3.decoders import Decoder, load_decoder
from efficientsam3.train.plan import TrainPlan, open_store
from efficientsam3.train.run import Observers

_PICTURES = 3


def training_observers(config: TrainConfig, device: torch.device) -> Observers:
    """The mask probe where PROBE.DECODER names a decoder, and pictures of features; for the main process.

    Raises:
        UserError: the probe's decoder or the dataset's annotations are missing, or do not fit the teacher.
    """
    probe = None
    if config.PROBE.DECODER is not None:
        probe = _build_probe(config, load_decoder(config.PROBE.DECODER, device), device)

    def pictures(student: nn.Module, plan: TrainPlan) -> Figure:
        return feature_figure(feature_pairs(cast(Student, student), plan.store, plan.val.listing, _PICTURES))

    return Observers(probe=probe, pictures=pictures)


def _build_probe(config: TrainConfig, decoder: Decoder, device: torch.device) -> MaskProbe:
    store = open_store(config)
    preprocessing, shape = store.manifest.preprocessing, (store.manifest.embed_dim, store.manifest.embed_size)
    check_fits("The teacher", shape, preprocessing, decoder)
    teacher: Encoder = StoreEncoder(store)
    if config.DISTILL.ONLINE:
        loaded: list[Teacher] = []

        def network(pixels: torch.Tensor) -> torch.Tensor:
            """The teacher, loaded at the first picture; the probe lets it go after the last."""
            if not loaded:
                loaded.append(build_teacher(config.TEACHER.RESUME, preprocessing, *shape, device))
            return loaded[0](pixels)

        teacher = ModuleEncoder(network, preprocessing, device)
    selection = Selection(0, config.PROBE.IMAGES, config.PROBE.OBJECTS, config.SEED)
    return MaskProbe(decoder, teacher, open_ground_truth(config.DATA.DATA_PATH), selection)
