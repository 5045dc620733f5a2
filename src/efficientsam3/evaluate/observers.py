"""What looks at a student after each epoch of its training.

matplotlib, and for the probe transformers, are imported where they are used: every process of a training would wait for
them.
"""

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from efficientsam3.checkpoints.necks import NeckName, digest_neck
from efficientsam3.data.loader import NO_ROW
from efficientsam3.models.student import Student
from efficientsam3.runtime.errors import UserError
from efficientsam3.train.necks import NeckPlan
from efficientsam3.train.plan import ProbePlan, TrainPlan
from efficientsam3.train.run import Observers
from efficientsam3.train.targets import StoredTargets, Targets

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from efficientsam3.evaluate.masks.encoders import Encoder
    from efficientsam3.evaluate.masks.probe import MaskProbe

_IMAGES = 3  # whose features are drawn


def training_observers(plan: TrainPlan, device: torch.device) -> Observers:
    """The mask probe where PROBE.DECODER names a decoder, and figures of features; for the main process.

    Raises:
        UserError: the probe's decoder or the dataset's annotations are missing, or do not fit the teacher.
    """

    def features(student: nn.Module) -> "Figure":
        from efficientsam3.evaluate.report.features import feature_pairs
        from efficientsam3.evaluate.report.figures import feature_figure

        return feature_figure(feature_pairs(cast(Student, student), plan.targets, plan.val, _IMAGES))

    probe = None if plan.probe is None else build_probe(plan.probe, plan.targets, plan.seed, device, plan.necks)
    return Observers(probe, features)


def build_probe(
    probe: ProbePlan,
    targets: Targets,
    seed: int,
    device: torch.device,
    necks: Mapping[NeckName, NeckPlan] = MappingProxyType({}),
) -> "MaskProbe":
    """The mask probe of a training, which has `necks` trained with the student.

    Raises:
        UserError: see `training_observers`.
    """
    from efficientsam3.evaluate.masks.encoders import ModuleEncoder, StoreEncoder
    from efficientsam3.evaluate.masks.ground_truth import Selection, open_ground_truth
    from efficientsam3.evaluate.masks.probe import MaskProbe
    from efficientsam3.sam3.decoders import TrackerDecoder, check_fits, load_decoder

    decoder = load_decoder(probe.decoder, device)
    trained = necks.get("tracker")
    own = decoder.neck if isinstance(decoder, TrackerDecoder) else None
    if trained is not None and (own is None or digest_neck(own.state_dict()) != trained.origin):
        raise UserError(
            f"PROBE.DECODER {probe.decoder} lacks the neck that is trained with the student: give the SAM3 that "
            "DISTILL.MASKS.DECODER names."
        )
    manifest = targets.manifest
    check_fits("The teacher", (manifest.embed_dim, manifest.embed_size), manifest.preprocessing, decoder)
    teacher: Encoder
    if isinstance(targets, StoredTargets):
        teacher = StoreEncoder(targets.store)
    else:
        teacher = ModuleEncoder(partial(targets.embed_one, NO_ROW), manifest.preprocessing, device)
    selection = Selection(0, probe.images, probe.objects, seed)
    return MaskProbe(decoder, teacher, open_ground_truth(probe.data_path), selection)
