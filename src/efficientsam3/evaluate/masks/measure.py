"""Measuring: every model answers every prompt of every object, image by image."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from efficientsam3.data.annotations.sa1b import BrokenAnnotationError
from efficientsam3.data.augment import augmentation_seed
from efficientsam3.data.images import BrokenImageError, read_rgb
from efficientsam3.data.objects import wrong_size
from efficientsam3.evaluate.masks.clicks import click
from efficientsam3.evaluate.masks.ground_truth import GroundTruth, Selection, TrueImage, choose_images, choose_objects
from efficientsam3.evaluate.masks.objects import CLICKS, PromptKind, TrueObject
from efficientsam3.evaluate.masks.phrases import choose_phrases, score_phrase
from efficientsam3.evaluate.masks.scores import ObjectScore
from efficientsam3.evaluate.masks.segmenters import Ask, Segmenter
from efficientsam3.evaluate.masks.text_scores import PhraseScore
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.logging import LOGGER_NAME
from efficientsam3.runtime.progress import progress_bar
from efficientsam3.sam3.decoders import Answer
from efficientsam3.sam3.geometry import check_prompt, mask_iou
from efficientsam3.sam3.prompts import Prompt, PromptError

_MOST_WARNINGS = 20
logger = logging.getLogger(LOGGER_NAME)
Match = tuple[torch.Tensor, float, float]  # mask (H, W), its IoU with the true one, its predicted score


@dataclass
class Measurement:
    """Scores, and what could not be measured."""

    scores: list[ObjectScore] = field(default_factory=list)
    phrases: list[PhraseScore] = field(default_factory=list)  # where text was asked
    images: int = 0  # measured
    broken: list[str] = field(default_factory=list)  # a sentence for each image or annotation that cannot be read
    left_out: list[str] = field(
        default_factory=list
    )  # a sentence for each entry of the annotations, and for each prompt of an object, that cannot be used
    lacking: int = 0  # images that a store has no embedding of

    def leave_out(self, sentence: str) -> None:
        """Keep the sentence, and log it unless there were many."""
        self.left_out.append(sentence)
        if len(self.left_out) <= _MOST_WARNINGS:
            logger.warning("left out: %s", sentence)


class Observer(Protocol):
    """Sees every object's masks as they come: they are not kept otherwise."""

    def __call__(
        self,
        image: TrueImage,
        thing: TrueObject,
        masks: list[torch.Tensor],
        scores: list[ObjectScore],
        prompts: list[Prompt],
    ) -> None:
        """One prompt of one object: a mask (H, W) bool, a score and a prompt (clicks are each its own) per model."""
        ...


def measure(
    segmenters: Sequence[Segmenter],
    truth: GroundTruth,
    prompts: Sequence[PromptKind],
    selection: Selection,
    observer: Observer | None = None,
) -> Measurement:
    """Ask every model for every chosen object.

    Of a model's masks for a box or point, the one with the highest predicted IoU counts; of those that a text finds,
    the one that overlaps most with the object, since a text asks for all objects of a kind.

    Args:
        segmenters: the first is the one that the others' agreement is taken with.
        truth: annotated images.
        prompts: what is asked for each object.
        selection: which objects.
        observer: sees the masks.

    Raises:
        UserError: no object could be measured.
    """
    measurement = Measurement()
    for sentence in truth.left_out:
        measurement.leave_out(sentence)
    indices = _with_embedding(segmenters, truth, measurement)
    indices = indices[choose_images(len(indices), selection)]
    with progress_bar("evaluate", len(indices)) as advance:
        for index in indices:
            try:
                image = truth.load(int(index))
                pixels = _read(image)
            except (BrokenAnnotationError, BrokenImageError) as error:
                logger.warning("%s", error)
                measurement.broken.append(str(error))
            else:
                things = choose_objects(image, selection)
                measurement.images += 1
                _measure_image(segmenters, image, pixels, things, prompts, selection, observer, measurement)
            advance(1)
    if not measurement.scores and not measurement.phrases:
        raise UserError(
            f"No object could be measured: of {len(truth.ids)} images {measurement.lacking} have no embedding and "
            f"{len(measurement.broken)} are broken, and {len(measurement.left_out)} objects could not be asked for"
            f"{_first(measurement)}; check the dataset, or lower --min-area."
        )
    return measurement


def _first(measurement: Measurement) -> str:
    found = [*measurement.broken, *measurement.left_out]
    return f", the first being: {found[0].rstrip('.')}" if found else ""


def _with_embedding(
    segmenters: Sequence[Segmenter], truth: GroundTruth, measurement: Measurement
) -> npt.NDArray[np.intp]:
    ids = [image_id.decode("utf-8") for image_id in truth.ids.tolist()]
    kept = [index for index, name in enumerate(ids) if all(segmenter.has(name) for segmenter in segmenters)]
    measurement.lacking = len(ids) - len(kept)
    return np.array(kept, dtype=np.intp)


def _read(image: TrueImage) -> torch.Tensor:
    pixels = read_rgb(image.path)
    if tuple(pixels.shape[-2:]) != image.size:
        raise wrong_size(image.path, tuple(pixels.shape[-2:]), image.size)
    return pixels


def _measure_image(
    segmenters: Sequence[Segmenter],
    image: TrueImage,
    pixels: torch.Tensor,
    things: Sequence[TrueObject],
    prompts: Sequence[PromptKind],
    selection: Selection,
    observer: Observer | None,
    measurement: Measurement,
) -> None:
    by_text = "text" in prompts and bool(image.phrases or image.absent)
    if not things and not by_text:
        return
    asks = [segmenter.open(image.image_id, pixels) for segmenter in segmenters]
    for thing in things:
        true = torch.from_numpy(np.ascontiguousarray(thing.rle.mask()))
        for kinds in _asked_together(prompts):
            try:
                answers = list(_answers(kinds, asks, image, thing, true, selection.seed))
            except PromptError as error:
                sentence = f"Annotation {image.source}, object {thing.number} of image {image.image_id}: {error}"
                measurement.leave_out(f"{sentence} (prompt {', '.join(kinds)})")
                continue
            for kind, asked, matches in answers:
                masks: list[torch.Tensor] = []
                scores: list[ObjectScore] = []
                for segmenter, (mask, iou, score) in zip(segmenters, matches, strict=True):
                    masks.append(mask)
                    agreement = mask_iou(mask, masks[0])
                    area = thing.rle.area
                    scores.append(
                        ObjectScore(segmenter.name, image.image_id, thing.number, kind, area, iou, agreement, score)
                    )
                if observer is not None:
                    observer(image, thing, masks, scores, asked)
                measurement.scores += scores
    if by_text:
        for phrase in choose_phrases(image, selection):
            try:
                measurement.phrases += score_phrase(segmenters, asks, image.image_id, phrase)
            except PromptError as error:
                measurement.leave_out(f"Annotation {image.source}, a phrase of image {image.image_id}: {error}")


def _asked_together(prompts: Sequence[PromptKind]) -> list[list[PromptKind]]:
    """Each kind alone, but the clicks, whose earlier rounds are on the way to the later ones."""
    clicks = [kind for kind in prompts if kind in CLICKS]
    return [[kind] for kind in prompts if kind not in CLICKS] + ([clicks] if clicks else [])


def _answers(
    kinds: Sequence[PromptKind],
    asks: Sequence[Ask],
    image: TrueImage,
    thing: TrueObject,
    true: torch.Tensor,
    seed: int,
) -> Iterator[tuple[PromptKind, list[Prompt], list[Match]]]:
    """For each kind, every model's prompt and the mask that counts."""
    if kinds[0] in CLICKS:
        clicked = [click(ask, true, [CLICKS[kind] for kind in kinds]) for ask in asks]
        for kind in kinds:
            of_kind = [rounds[CLICKS[kind]] for rounds in clicked]
            yield kind, [prompt for prompt, _ in of_kind], [_match(answer, true) for _, answer in of_kind]
        return
    prompt = thing.prompt(kinds[0], augmentation_seed(seed, image.image_id))
    check_prompt(prompt, image.size)
    yield kinds[0], [prompt] * len(asks), [_match(ask(prompt), true) for ask in asks]


def _match(answer: Answer, true: torch.Tensor) -> Match:
    """The mask that overlaps most, its IoU and its predicted score; an empty mask and zeros without an answer."""
    if len(answer.masks) == 0:
        return torch.zeros_like(true), 0.0, 0.0
    overlaps = [mask_iou(mask, true) for mask in answer.masks]
    best = int(np.argmax(overlaps))
    return answer.masks[best], overlaps[best], float(answer.scores[best])
