"""Ground truth in both formats, and a store and a student that fit the box decoder."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from box_decoder import CELLS, CHANNELS, SIDE
from efficientsam3.data.augment import Augmentation
from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.models.student import Student, StudentArchitecture
from efficientsam3.store.manifest import StoreManifest

Mask = npt.NDArray[np.bool_]
WriteTruth = Callable[[Path, dict[str, list[Mask]]], Path]


def encode(mask: Mask) -> dict[str, Any]:
    """COCO's compressed run lengths."""
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode("ascii")}


def noise(path: Path, height: int, width: int) -> None:
    """An image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def write_sa1b() -> WriteTruth:
    """Writes masks by image name as an SA-1B folder's val split, with a point of each; returns the folder."""

    def write(root: Path, masks: dict[str, list[Mask]]) -> Path:
        for number, (name, of_image) in enumerate(masks.items()):
            height, width = of_image[0].shape
            noise(root / "images" / "val" / f"{name}.jpg", height, width)
            image = {"image_id": number, "width": width, "height": height, "file_name": f"{name}.jpg"}
            content = {"image": image, "annotations": [_sa1b_mask(mask) for mask in of_image]}
            path = root / "annotations" / "val" / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))
        return root

    return write


def _sa1b_mask(mask: Mask) -> dict[str, Any]:
    rows, columns = np.nonzero(mask)
    x, y = (columns.min(), rows.min()) if len(rows) else (0, 0)
    w, h = (columns.max() - x, rows.max() - y) if len(rows) else (0, 0)
    points = [[float(columns[0]), float(rows[0])]] if len(rows) else []
    box = [float(value) for value in (x, y, w, h)]
    return {"segmentation": encode(mask), "bbox": box, "area": int(mask.sum()), "point_coords": points}


@pytest.fixture
def write_coco() -> WriteTruth:
    """Writes the same as COCO's val2017, object i of each image a "thing i"; returns the folder."""

    def write(root: Path, masks: dict[str, list[Mask]]) -> Path:
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, (name, of_image) in enumerate(masks.items()):
            height, width = of_image[0].shape
            noise(root / "val2017" / f"{name}.jpg", height, width)
            images.append({"id": number, "file_name": f"{name}.jpg", "width": width, "height": height})
            for place, mask in enumerate(of_image):
                # The box is COCO's, one pixel larger than SA-1B's.
                x, y, w, h = _sa1b_mask(mask)["bbox"]
                annotations.append(
                    {
                        "id": len(annotations),
                        "image_id": number,
                        "category_id": place,
                        "segmentation": encode(mask),
                        "area": float(mask.sum()),
                        "bbox": [x, y, w + 1, h + 1],
                        "iscrowd": 0,
                    }
                )
        most = max(map(len, masks.values()))
        categories = [{"id": place, "name": f"thing {place}"} for place in range(most)]
        path = root / "annotations" / "instances_val2017.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
        return root

    return write


@pytest.fixture
def two_images() -> dict[str, list[Mask]]:
    """A wide and a tall image with two boxes each, and an empty mask."""
    wide, tall = np.zeros((3, 40, 80), dtype=bool), np.zeros((2, 96, 48), dtype=bool)
    wide[0, 10:30, 20:60] = wide[1, 4:12, 4:12] = True
    tall[0, 30:90, 6:42] = tall[1, 6:18, 12:30] = True
    return {"sa_1": list(wide), "sa_2": list(tall)}


@pytest.fixture
def write_store() -> Callable[..., Path]:
    """Writes a store of noise with the records of the ids given; by default it fits `box_decoder`."""

    def write(
        directory: Path, ids: list[str], hflip: float = 0.0, shape: tuple[int, int, int] = (CHANNELS, CELLS, SIDE)
    ) -> Path:
        directory.mkdir(parents=True)
        channels, cells, side = shape
        manifest = StoreManifest(
            embed_dim=channels,
            embed_size=cells,
            preprocessing=Preprocessing(image_size=side, resize="square"),
            augmentation=Augmentation(hflip=hflip),
        )
        (directory / "manifest.json").write_text(manifest.model_dump_json())
        grids = np.random.default_rng(0).normal(size=(len(ids), channels, cells, cells)).astype("<f2")
        (directory / "rank0-values.bin").write_bytes(b"".join(bytes(4) + grid.tobytes() for grid in grids))
        (directory / "rank0-keys.txt").write_text("".join(f"{key}\n" for key in ids))
        return directory

    return write


@pytest.fixture
def student_path(tmp_path: Path) -> Path:
    """The checkpoint of a training on such a store, with its curves beside it."""
    architecture = StudentArchitecture("efficientvit_b0", embed_dim=CHANNELS, embed_size=CELLS, image_size=SIDE)
    torch.manual_seed(0)
    preprocessing = Preprocessing(image_size=SIDE, resize="square")
    content = {
        "model": Student(architecture).state_dict(),
        "architecture": asdict(architecture),
        "preprocessing": preprocessing.model_dump(),
    }
    folder = tmp_path / "training"
    folder.mkdir()
    torch.save(content, folder / "ckpt_epoch_1.pth")
    epochs = [{"epoch": epoch, "train/loss": 1.0 - epoch / 2, "val/loss": 1.5 - epoch / 2} for epoch in range(2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    return folder / "ckpt_epoch_1.pth"
