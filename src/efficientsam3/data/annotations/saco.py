"""SA-Co's files of noun phrases, read as untrusted input: images with the phrases that are asked of them.

Gold and Silver are COCO-like: each entry of `images` is a pair of an image and a phrase, and a pair without annotations
is a negative one (https://github.com/facebookresearch/sam3/blob/main/scripts/eval/gold/README.md, "Annotation format").
VEval has videos, whose frames are read as images (scripts/eval/veval/README.md there). Boxes and areas are not read:
they follow from the masks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Protocol, TypeVar

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from efficientsam3.data.annotations.coco import MAX_INSTANCES_BYTES, Record, RunLengths, Side
from efficientsam3.data.annotations.sa1b import BrokenAnnotationError, UnreadableAnnotationError
from efficientsam3.data.find import IMAGE_SUFFIXES
from efficientsam3.runtime.files import read_bytes

_Flag = bool | Literal[0, 1]
Parsed = TypeVar("Parsed", bound=BaseModel)


def _relative_name(name: str) -> str:
    parts = PurePosixPath(name).parts
    if (
        not parts
        or {"\\", "\0", "\n", "\r"} & set(name)
        or any(part.startswith(".") or part == "/" for part in parts)
        or not name.lower().endswith(IMAGE_SUFFIXES)
    ):
        raise ValueError(f"{name!r} is not the relative path of a JPEG, PNG or WebP file")
    return name


RelativeName = Annotated[str, AfterValidator(_relative_name)]
PhraseText = Annotated[str, Field(min_length=1)]


class _Pair(Record):
    id: int
    file_name: RelativeName
    text_input: PhraseText
    width: Side
    height: Side
    is_instance_exhaustive: _Flag


class _Mask(Record):
    image_id: int
    segmentation: RunLengths
    iscrowd: _Flag = 0


class _PairsFile(Record):
    images: list[_Pair]
    annotations: list[_Mask]


class _Video(Record):
    id: int
    file_names: list[RelativeName]
    width: Side
    height: Side


class _Masklet(Record):
    video_id: int
    noun_phrase: PhraseText
    segmentations: list[RunLengths | None]
    iscrowd: _Flag = 0


class _VideoPair(Record):
    video_id: int
    noun_phrase: PhraseText


class _VideosFile(Record):
    videos: list[_Video]
    annotations: list[_Masklet]
    video_np_pairs: list[_VideoPair]


@dataclass(frozen=True)
class PhrasePair:
    """One phrase asked of an image."""

    text: str
    exhaustive: bool  # whether each object of this name has a mask of its own
    masks: tuple[RunLengths, ...]  # none where the phrase is not in the image


@dataclass(frozen=True)
class PhraseImage:
    """One image with all that is asked of it, each phrase once."""

    file_name: str  # relative to the folder of the images
    height: int
    width: int
    pairs: tuple[PhrasePair, ...]


class PhraseFile(Protocol):
    """What a file says, image by image."""

    names: Sequence[str]  # file names of its images, each once
    phrases: Sequence[str]  # all of them, each once
    left_out: Sequence[str]  # a sentence for each pair that is given twice

    def image(self, index: int) -> PhraseImage:
        """The image of that place in `names`."""
        ...


class ImagePhrases:
    """SA-Co Gold and Silver; see `PhraseFile`."""

    def __init__(self, path: Path) -> None:
        """Read a file.

        Raises:
            BrokenAnnotationError: it cannot be read, is not in the published format, or its ids do not fit together.
        """
        file = _parse(path, _PairsFile)
        self._masks: dict[int, list[_Mask]] = {pair.id: [] for pair in file.images}
        if len(self._masks) < len(file.images):
            raise _broken(path, "images: two pairs have one id")
        for number, mask in enumerate(file.annotations):
            if mask.image_id not in self._masks:
                raise _broken(path, f"annotations.{number}.image_id: no pair has the id {mask.image_id}")
            self._masks[mask.image_id].append(mask)
        twice: list[str] = []
        self._pairs: dict[str, dict[str, _Pair]] = {}
        for pair in file.images:
            of_image = self._pairs.setdefault(pair.file_name, {})
            first = next(iter(of_image.values()), pair)
            if (pair.height, pair.width) != (first.height, first.width):
                raise _broken(path, f"the pairs {first.id} and {pair.id} of {pair.file_name} give it different sizes")
            if pair.text_input in of_image:
                twice.append(f"SA-Co file {path}, pair {pair.id}: {pair.file_name} has its phrase twice")
            else:
                of_image[pair.text_input] = pair
        self.left_out: Sequence[str] = twice
        self.names: Sequence[str] = list(self._pairs)
        self.phrases: Sequence[str] = list(dict.fromkeys(pair.text_input for pair in file.images))

    def image(self, index: int) -> PhraseImage:
        """See `PhraseFile`."""
        of_image = self._pairs[self.names[index]]
        first = next(iter(of_image.values()))
        pairs = []
        for text, pair in of_image.items():
            masks = self._masks[pair.id]
            exhaustive = bool(pair.is_instance_exhaustive) and not any(mask.iscrowd for mask in masks)
            pairs.append(PhrasePair(text, exhaustive, tuple(mask.segmentation for mask in masks if not mask.iscrowd)))
        return PhraseImage(first.file_name, first.height, first.width, tuple(pairs))


class VideoPhrases:
    """SA-Co VEval, each frame as an image of which its video's phrases are asked; see `PhraseFile`."""

    def __init__(self, path: Path) -> None:
        """Read a file.

        Raises:
            BrokenAnnotationError: it cannot be read, is not in the published format, or its ids do not fit together.
        """
        file = _parse(path, _VideosFile)
        videos = {video.id: video for video in file.videos}
        if len(videos) < len(file.videos):
            raise _broken(path, "videos: two have one id")
        self._pairs: dict[int, dict[str, list[_Masklet]]] = {number: {} for number in videos}
        for number, pair in enumerate(file.video_np_pairs):
            if pair.video_id not in videos:
                raise _broken(path, f"video_np_pairs.{number}.video_id: no video has the id {pair.video_id}")
            self._pairs[pair.video_id].setdefault(pair.noun_phrase, [])
        for number, entry in enumerate(file.annotations):
            if entry.video_id not in videos:
                raise _broken(path, f"annotations.{number}.video_id: no video has the id {entry.video_id}")
            found, frames = len(entry.segmentations), len(videos[entry.video_id].file_names)
            if found != frames:
                raise _broken(path, f"annotations.{number}.segmentations: {found} for {frames} frames")
            self._pairs[entry.video_id].setdefault(entry.noun_phrase, []).append(entry)
        self._frames = [(video, frame) for video in file.videos for frame in range(len(video.file_names))]
        self.names: Sequence[str] = [video.file_names[frame] for video, frame in self._frames]
        if len(set(self.names)) < len(self.names):
            raise _broken(path, "videos: two frames have one file name")
        self.phrases: Sequence[str] = list(dict.fromkeys(phrase for pairs in self._pairs.values() for phrase in pairs))
        self.left_out: Sequence[str] = ()

    def image(self, index: int) -> PhraseImage:
        """See `PhraseFile`."""
        video, frame = self._frames[index]
        pairs = []
        for text, masklets in self._pairs[video.id].items():
            shown = [(masklet, masklet.segmentations[frame]) for masklet in masklets]
            masks = tuple(mask for masklet, mask in shown if mask is not None and not masklet.iscrowd)
            crowd = any(mask is not None and masklet.iscrowd for masklet, mask in shown)
            pairs.append(PhrasePair(text, not crowd, masks))
        return PhraseImage(self.names[index], video.height, video.width, tuple(pairs))


def _parse(path: Path, model: type[Parsed]) -> Parsed:
    try:
        return model.model_validate_json(read_bytes(path, MAX_INSTANCES_BYTES))
    except OSError as error:
        raise UnreadableAnnotationError(f"SA-Co file {path} cannot be read ({error.strerror}): replace it.") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise _broken(path, f"{where}: {first['msg']}" if where else first["msg"]) from error


def _broken(path: Path, what: str) -> BrokenAnnotationError:
    return BrokenAnnotationError(f"SA-Co file {path} is not in its published format ({what}): replace it.")
