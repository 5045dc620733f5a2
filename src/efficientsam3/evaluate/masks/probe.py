"""The mask probe: during training, how good the masks are that a frozen decoder makes of the student's embeddings.

The loss alone misleads: an embedding may come closer on average and move away where masks are decided.
"""

import os

from torch import nn

from efficientsam3.evaluate.masks.encoders import Encoder, ModuleEncoder
from efficientsam3.evaluate.masks.ground_truth import GroundTruth, Selection
from efficientsam3.evaluate.masks.measure import measure
from efficientsam3.evaluate.masks.objects import PromptKind
from efficientsam3.evaluate.masks.scores import summarise
from efficientsam3.evaluate.masks.segmenters import EncoderWithDecoder, Remembered, Segmenter
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.decoders import Decoder, TrackerDecoder
from efficientsam3.train.objective import NO_NECKS, Necks

PROBE_PROMPTS: tuple[PromptKind, ...] = ("box", "point")
_TEACHER, _STUDENT = "teacher", "student"


class MaskProbe:
    """Masks from a student's embeddings against ground truth, and against those from the teacher's."""

    def __init__(self, decoder: Decoder, teacher: Encoder, truth: GroundTruth, selection: Selection) -> None:
        """Set up; nothing is computed yet.

        Args:
            decoder: frozen.
            teacher: gives the teacher's embeddings, whose masks are computed once, at the first call.
            truth: annotated images.
            selection: which of them, and how many objects of each; the same at every call.

        Raises:
            UserError: no annotated image has an embedding.
        """
        if not any(teacher.has(os.fsdecode(image_id)) for image_id in truth.ids):
            raise UserError("The store has none of the annotated val images to probe: embed their split too.")
        self._decoder, self._preprocessing = decoder, teacher.preprocessing
        self._truth, self._selection = truth, selection
        self._teacher = Remembered(EncoderWithDecoder(_TEACHER, teacher, decoder))

    def __call__(self, student: nn.Module, necks: Necks = NO_NECKS) -> dict[str, float]:
        """Probe a student, whose training mode is as before afterwards.

        Args:
            student: from normalised pixels (B, 3, S, S) to the teacher's embedding (B, D, G, G), not standardised.
            necks: those that are trained with it, from the decoder's own.

        Returns:
            `box_miou`, `point_miou` with the true masks; `box_agreement`, `point_agreement` with the teacher's masks;
            `teacher_box_miou`, `teacher_point_miou`. Each in [0, 1], a mean over objects.

        Raises:
            UserError: no object could be measured.
        """
        device, training = next(student.parameters()).device, student.training
        encoder = ModuleEncoder(student.eval(), self._preprocessing, device)
        decoder = self._decoder
        if "tracker" in necks:
            assert isinstance(decoder, TrackerDecoder), "`build_probe` has checked it"
            decoder = decoder.behind(necks["tracker"])
        try:
            segmenters: list[Segmenter] = [self._teacher, EncoderWithDecoder(_STUDENT, encoder, decoder)]
            scores = measure(segmenters, self._truth, PROBE_PROMPTS, self._selection).scores
        finally:
            student.train(training)
        self._teacher.close()
        figures: dict[str, float | None] = {}
        for prompt in PROBE_PROMPTS:
            own, teacher = (summarise(scores, name, prompt) for name in (_STUDENT, _TEACHER))
            figures |= {f"{prompt}_miou": own.miou, f"{prompt}_agreement": own.agreement}
            figures[f"teacher_{prompt}_miou"] = teacher.miou
        return {name: value for name, value in figures.items() if value is not None}
