"""Models mixed from a teacher and a student: one of them with a part of the other's features."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from efficientsam3.data.images import read_rgb
from efficientsam3.evaluate.masks.ground_truth import GroundTruth, TrueImage
from efficientsam3.evaluate.masks.parts import Statistics, bands, content_cells, regions
from efficientsam3.evaluate.masks.segmenters import Ask, EncoderWithDecoder, WholeModel
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.decoders import Answer, MaskDecoder
from efficientsam3.sam3.geometry import Placement
from efficientsam3.sam3.prompts import ObjectPrompt, Prompt

Model = EncoderWithDecoder | WholeModel
TRUNK, LEVELS = "trunk and neck", "levels of the neck"
CHANNELS, SCALE, BANDS, REGIONS = "channels by error", "mean and scale", "spatial frequency", "regions"


@dataclass(frozen=True, eq=False)
class Side:
    """One model on one image."""

    embedding: torch.Tensor  # (1, D, G, G), on the CPU
    decoder: MaskDecoder

    def features(self) -> list[torch.Tensor]:
        """Its own."""
        return self.decoder.features(self.embedding)


@dataclass(frozen=True)
class Scene:
    """Both models on one image."""

    teacher: Side
    student: Side
    placement: Placement
    content: tuple[int, int]  # rows and columns of cells that show the image
    image: TrueImage
    _split: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)

    @property
    def difference(self) -> torch.Tensor:
        """The teacher's embedding less the student's (1, D, G, G)."""
        return self.teacher.embedding - self.student.embedding

    def split(self, family: str) -> dict[str, torch.Tensor]:
        """The bands of the difference (1, D, G, G), or the cells (G, G) of the regions."""
        if family not in self._split:
            if family == BANDS:
                self._split[family] = bands(self.difference, self.content)
            else:
                masks = (thing.rle.mask() for thing in self.image.objects)
                self._split[family] = regions(masks, self.content, self.difference.shape[-1])
        return self._split[family]


Mix = Callable[[Scene, Side, Side], list[torch.Tensor]]
Share = Callable[[Scene], torch.Tensor]


@dataclass(frozen=True)
class Part:
    """Something that can be exchanged."""

    family: str
    name: str
    mix: Mix  # the features of a scene's first side with this part of the second
    share: Share | None = None  # what the part has of the difference of the embeddings, where it is a part of them


def _part_of_embedding(family: str, name: str, share: Share) -> Part:
    def mix(scene: Scene, own: Side, other: Side) -> list[torch.Tensor]:
        sign = 1 if own is scene.student else -1
        return own.decoder.features(own.embedding + sign * share(scene))

    return Part(family, name, mix, share)


class Pair:
    """Teacher and student, image by image; the last image's scene is kept, since all mixtures ask for it."""

    def __init__(self, teacher: Model, student: Model, truth: GroundTruth) -> None:
        """Pair two models.

        Raises:
            UserError: images lie differently in their inputs, or a model cannot be taken apart.
        """
        geometry = [(model.preprocessing.image_size, model.preprocessing.resize) for model in (teacher, student)]
        if geometry[0] != geometry[1]:
            (size, resize), (other_size, other_resize) = geometry
            raise UserError(
                f"--explain cannot exchange parts of {teacher.name}, whose images are {size} pixels by {resize}, and "
                f"{student.name}, whose are {other_size} by {other_resize}: give a student of this teacher."
            )
        self.teacher, self.student, self.preprocessing = teacher, student, teacher.preprocessing
        self._decoders = teacher.decoder, student.decoder
        self._truth = truth
        self._places = {name.decode("utf-8"): place for place, name in enumerate(truth.ids.tolist())}
        self._kept: tuple[str, Scene] | None = None
        self._padded = False  # whether any image so far has padding

    def scene(self, image_id: str, pixels: torch.Tensor | None = None) -> Scene:
        """Both models on an image, which is read again where its pixels (3, H, W) uint8 are not given.

        Raises:
            UserError: their embeddings have different shapes.
        """
        if self._kept is None or self._kept[0] != image_id:
            image = self._truth.load(self._places[image_id])
            pixels = read_rgb(image.path) if pixels is None else pixels
            one, other = (model.embed(image_id, pixels).float().cpu() for model in (self.teacher, self.student))
            if one.shape != other.shape:
                raise UserError(
                    f"--explain cannot exchange parts of embeddings of {' x '.join(map(str, one.shape[1:]))} and "
                    f"{' x '.join(map(str, other.shape[1:]))}: give a student of this teacher."
                )
            placement = Placement.of(*image.size, self.preprocessing)
            content = content_cells(image.size, self.preprocessing, one.shape[-1])
            self._padded |= content != tuple(one.shape[-2:])
            sides = Side(one, self._decoders[0]), Side(other, self._decoders[1])
            self._kept = image_id, Scene(*sides, placement, content, image)
        return self._kept[1]

    def cells(self, image_ids: Sequence[str]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Teacher's and student's (D, cells) of each image, without padding."""
        for image_id in image_ids:
            scene = self.scene(image_id)
            rows, columns = scene.content
            one, other = (side.embedding[0, :, :rows, :columns].flatten(1) for side in (scene.teacher, scene.student))
            yield one, other

    def parts(self, statistics: Statistics, groups: list[list[int]], image_id: str) -> list[Part]:
        """Everything that can be exchanged; levels, trunk and neck only where there are such that differ.

        Raises:
            UserError: the decoders are of different kinds.
        """
        scene = self.scene(image_id)
        levels, foreign = scene.student.features(), scene.teacher.decoder.features(scene.student.embedding)
        if len(levels) != len(foreign):
            raise UserError(
                f"--explain cannot exchange parts of {self.teacher.name} and {self.student.name}, whose decoders are "
                "of different kinds: give both a SAM3's, or both SAM's."
            )
        found: list[Part] = []
        if not all(torch.equal(level, other) for level, other in zip(levels, foreign, strict=True)):
            found += [Part(TRUNK, "trunk", _trunk), Part(TRUNK, "neck", _neck)]
        if len(levels) > 1:
            for place, level in enumerate(levels):
                found.append(Part(LEVELS, f"{level.shape[-2]} x {level.shape[-1]} cells", _level(place)))
        for place, group in enumerate(groups):
            name = f"{len(group)} channels, {_rank(place, len(groups))}"
            found.append(_part_of_embedding(CHANNELS, name, _channels(group)))
        found.append(Part(SCALE, "of each channel", _scale(statistics)))
        found += [_part_of_embedding(BANDS, name, _band(name)) for name in scene.split(BANDS)]
        names = list(scene.split(REGIONS))  # padding comes last
        found += [_part_of_embedding(REGIONS, name, _region(name)) for name in (names if self._padded else names[:-1])]
        return found


class Mixture:
    """One model with a part of the other's features; a `Segmenter` for boxes and points."""

    def __init__(self, name: str, pair: Pair, part: Part, repair: bool) -> None:
        """The student with the teacher's part (`repair`), or the teacher with the student's."""
        self.name, self._pair, self._part, self._repair = name, pair, part, repair
        self.preprocessing = pair.preprocessing
        self.error = 0.0  # sum of squares of what the part has of the difference, over the images that were opened

    def _sides(self, image_id: str, pixels: torch.Tensor) -> tuple[Scene, Side, Side]:
        scene = self._pair.scene(image_id, pixels)
        return (scene, scene.student, scene.teacher) if self._repair else (scene, scene.teacher, scene.student)

    def embed(self, image_id: str, pixels: torch.Tensor) -> torch.Tensor:
        """See `Segmenter`: that of the model that is changed."""
        return self._sides(image_id, pixels)[1].embedding

    def open(self, image_id: str, pixels: torch.Tensor) -> Ask:
        """See `Segmenter`."""
        scene, own, other = self._sides(image_id, pixels)
        if self._part.share is not None:
            self.error += float(self._part.share(scene).square().sum())
        decode = own.decoder.decode(self._part.mix(scene, own, other), scene.placement)

        def ask(prompt: Prompt) -> Answer:
            assert isinstance(prompt, ObjectPrompt), "text is not explained"
            return decode(prompt)

        return ask

    def has(self, image_id: str) -> bool:
        """See `Segmenter`."""
        return self._pair.teacher.has(image_id) and self._pair.student.has(image_id)


def _rank(place: int, count: int) -> str:
    return "largest" if place == 0 else "smallest" if place == count - 1 else f"{place + 1} of {count}"


def _trunk(scene: Scene, own: Side, other: Side) -> list[torch.Tensor]:
    return own.decoder.features(other.embedding)


def _neck(scene: Scene, own: Side, other: Side) -> list[torch.Tensor]:
    return other.decoder.features(own.embedding)


def _level(place: int) -> Mix:
    def mix(scene: Scene, own: Side, other: Side) -> list[torch.Tensor]:
        levels = own.features()
        levels[place] = other.features()[place]
        return levels

    return mix


def _channels(group: list[int]) -> Share:
    def share(scene: Scene) -> torch.Tensor:
        part = torch.zeros_like(scene.difference)
        part[:, group] = scene.difference[:, group]
        return part

    return share


def _scale(statistics: Statistics) -> Mix:
    def mix(scene: Scene, own: Side, other: Side) -> list[torch.Tensor]:
        repair = own is scene.student
        return own.decoder.features(statistics.rescale(own.embedding, to_teacher=repair))

    return mix


def _band(name: str) -> Share:
    return lambda scene: scene.split(BANDS)[name]


def _region(name: str) -> Share:
    return lambda scene: scene.difference * scene.split(REGIONS)[name]
