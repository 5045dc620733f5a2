"""The mask probe: during training, what the student's embeddings are worth once a frozen decoder has them.

The loss alone misleads: an embedding may come closer in the mean and further where masks are decided.
"""

from pathlib import Path

import torch
from torch import nn

from efficientsam3.embeddings.reader import EmbeddingStore
from efficientsam3.evaluate.decoders import Decoder, load_decoder
from efficientsam3.evaluate.encoders import ModuleEncoder, StoreEncoder
from efficientsam3.evaluate.ground_truth import GroundTruth, Selection, open_ground_truth
from efficientsam3.evaluate.measure import measure
from efficientsam3.evaluate.open_models import check_fits
from efficientsam3.evaluate.prompts import PromptKind
from efficientsam3.evaluate.scores import summarise
from efficientsam3.evaluate.segmenters import EncoderWithDecoder, Remembered, Segmenter
from efficientsam3.runtime.errors import UserError

PROBE_PROMPTS: tuple[PromptKind, ...] = ("box", "point")
_TEACHER, _STUDENT = "teacher", "student"


class MaskProbe:
    """Masks from a student's embeddings against ground truth, and against those from the teacher's."""

    def __init__(self, decoder: Decoder, store: EmbeddingStore, truth: GroundTruth, selection: Selection) -> None:
        """Set up; nothing is computed yet.

        Args:
            decoder: frozen.
            store: the teacher's embeddings; their masks are computed once, at the first call.
            truth: annotated images.
            selection: which of them, and how many objects of each; the same at every call.

        Raises:
            UserError: the decoder does not take the store's embeddings, their pictures were flipped, or it has none of
                the annotated ones.
        """
        stored = StoreEncoder(store)
        check_fits(str(store.directory), stored.shape, stored.preprocessing, decoder)
        if not (store.rows(truth.ids) >= 0).any():
            raise UserError(f"The store {store.directory} has none of the annotated pictures: export their split too.")
        self._decoder, self._preprocessing = decoder, stored.preprocessing
        self._truth, self._selection = truth, selection
        self._teacher = Remembered(EncoderWithDecoder(_TEACHER, stored, decoder))

    def __call__(self, student: nn.Module) -> dict[str, float]:
        """Probe a student, whose training mode is as before afterwards.

        Args:
            student: from normalised pixels (B, 3, S, S) to the teacher's embedding (B, D, G, G), not standardised.

        Returns:
            `box_miou`, `point_miou` with the true masks; `box_agreement`, `point_agreement` with the teacher's masks;
            `teacher_box_miou`, `teacher_point_miou`. Each in [0, 1], a mean over objects.

        Raises:
            UserError: no object could be measured.
        """
        device, training = next(student.parameters()).device, student.training
        encoder = ModuleEncoder(student.eval(), self._preprocessing, device)
        try:
            segmenters: list[Segmenter] = [self._teacher, EncoderWithDecoder(_STUDENT, encoder, self._decoder)]
            scores = measure(segmenters, self._truth, PROBE_PROMPTS, self._selection).scores
        finally:
            student.train(training)
        figures: dict[str, float | None] = {}
        for prompt in PROBE_PROMPTS:
            own, teacher = (summarise(scores, name, prompt) for name in (_STUDENT, _TEACHER))
            figures |= {f"{prompt}_miou": own.miou, f"{prompt}_agreement": own.agreement}
            figures[f"teacher_{prompt}_miou"] = teacher.miou
        return {name: value for name, value in figures.items() if value is not None}


def build_probe(
    decoder: Path, store: EmbeddingStore, data: Path, images: int, objects: int, device: torch.device, seed: int = 0
) -> MaskProbe:
    """A probe of a dataset's val split.

    Args:
        decoder: SAM's decoder as .onnx, or a SAM3, of which only the interactive predictor's decoder is kept.
        store: the teacher's embeddings.
        data: annotated pictures, see `open_ground_truth`.
        images: how many of those that the store has, chosen by `seed`.
        objects: how many of each.
        device: where a SAM3 decoder computes; ONNX computes on the CPU.
        seed: chooses images and objects.

    Raises:
        UserError: the decoder or the annotations are missing, or do not fit the store.
    """
    truth = open_ground_truth(data)
    return MaskProbe(load_decoder(decoder, device), store, truth, Selection(0, images, objects, seed))
