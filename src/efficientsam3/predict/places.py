"""Where the answers for each image go: below the output folder as the images lie below their common folder."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import unreadable
from efficientsam3.runtime.own_files import OwnFiles, refuse

_MASK = re.compile(r"(.*)_mask_[0-9]{3,}\.png", re.DOTALL)
_LONGEST = 255  # bytes of a file's name


@dataclass(frozen=True)
class Place:
    """Where the answers for one image go.

    Attributes:
        own: the files that the program wrote to the folder.
        name: start of the files' names.
        whole: what the files are part of, see `OwnFiles.add`.
    """

    own: OwnFiles
    name: str
    whole: str

    @property
    def folder(self) -> Path:
        """The folder."""
        return self.own.folder

    @property
    def record(self) -> Path:
        """The JSON file, which names the others."""
        return self.folder / f"{self.name}.json"

    @property
    def overlay(self) -> Path:
        """The overlay."""
        return self.folder / f"{self.name}_overlay.png"

    def mask(self, number: int) -> Path:
        """The mask of an object, counted from 0."""
        return self.folder / f"{self.name}_mask_{number:03d}.png"


def plan_places(images: Iterable[Path], output: Path) -> dict[Path, Place]:
    """Where the answers for each image go; an image that is named twice has one place, under its first name.

    Images of one folder have their answers right in `output`, those of several folders below it, by their paths from
    the folder that all are in. The names begin with the image's name without its suffix, or with the whole name where
    another image of the folder has it without.

    Raises:
        UserError: an image's name is too long for those of its answers.
    """
    first: dict[Path, Path] = {}
    for image in images:
        first.setdefault(Path(os.path.abspath(image)), image)
    if not first:
        return {}
    root = os.path.commonpath([path.parent for path in first])
    names, stems = {(path.parent, path.name) for path in first}, Counter((path.parent, path.stem) for path in first)
    folders: dict[Path, OwnFiles] = {}
    places = {}
    for path, image in first.items():
        alone = stems[path.parent, path.stem] == 1 and (path.parent, path.stem) not in names
        folder = output / path.parent.relative_to(root)
        own = folders.setdefault(folder, OwnFiles(folder))
        place = Place(own, path.stem if alone else path.name, f"the answers for {path}")
        if len(os.fsencode(place.mask(0).name)) > _LONGEST:
            raise UserError(f"Image {image} has too long a name for those of its answers: shorten it.")
        places[image] = place
    return places


def check_places(places: Iterable[Place]) -> None:
    """Check that no answer replaces a file of the user's, or the answers for another image.

    Raises:
        UserError: files are there that do; the first are named.
    """
    by_folder: defaultdict[Path, dict[str, Place]] = defaultdict(dict)
    for place in places:
        by_folder[place.folder][place.name] = place
    refuse(found for folder, named in by_folder.items() for found in _objections(folder, named))


def _objections(folder: Path, named: Mapping[str, Place]) -> Iterator[tuple[Path, str]]:
    endings = {ending: place for place in named.values() for ending in (place.record.name, place.overlay.name)}
    for name in _names_in(folder):
        mask = _MASK.fullmatch(name)
        place = endings.get(name) or (named.get(mask[1]) if mask else None)
        why = place.own.objection(name, place.whole) if place else None
        if why:
            yield folder / name, why


def remove_stale_masks(place: Place, count: int) -> None:
    """Remove the program's own masks from `count` on: those of an earlier run would look like answers of this one."""
    while os.path.lexists(place.mask(count)):
        if place.own.objection(place.mask(count).name, place.whole) is None:
            place.mask(count).unlink(missing_ok=True)
        count += 1


def _names_in(folder: Path) -> list[str]:
    """The names in a folder, sorted; none where it is missing.

    Raises:
        UserError: it is not a folder, or cannot be read.
    """
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(folder, error) from error
