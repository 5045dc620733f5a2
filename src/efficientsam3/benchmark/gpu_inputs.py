"""What `benchmark gpu` works on: a trunk with random weights, JPEGs and a store of noise, made in a folder."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import Sam3ViTConfig, Sam3ViTModel

from efficientsam3.config.schema import (
    DataConfig,
    DistillConfig,
    ExportConfig,
    ExportDataConfig,
    StudentConfig,
    TeacherConfig,
    TrainConfig,
    TrainSettings,
)
from efficientsam3.data.preprocess import sam3_preprocessing
from efficientsam3.embed.plan import EmbedPlan, free_space, plan_embedding
from efficientsam3.models.students import backbone_of
from efficientsam3.models.tracing import trace
from efficientsam3.runtime.device import usable_cores
from efficientsam3.store.manifest import StoreManifest, write_store_manifest
from efficientsam3.store.shards import Shard
from efficientsam3.store.statistics import ChannelStatistics, ShardStatistics
from efficientsam3.store.writer import BackgroundWriter

_MOST_WORKERS = 16
_DISK_SHARE = 4  # the store, and what is embedded, may each take one in so many of the free bytes


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    trunk: Mapping[str, Any] = field(default_factory=dict)  # changes to SAM3's own configuration
    trunk_batches: tuple[int, ...] = (8, 32)
    image: tuple[int, int] = (1500, 2250)  # height, width of the JPEGs, as in SA-1B
    images: int = 1024
    different_images: int = 32  # the others are links to these
    matrix: int = 8192  # side of the matrices whose product is the measure of the device
    seconds: float = 5.0  # of one measurement


SMALL = Scale(
    trunk={
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 224,
        "pretrain_image_size": 112,
        "window_size": 4,
        "global_attn_indexes": [1],
    },
    trunk_batches=(1,),
    image=(150, 225),
    images=8,
    different_images=2,
    matrix=128,
    seconds=0.0,
)


class Inputs:
    """The made-up inputs, and configurations that use them."""

    def __init__(self, folder: Path, scale: Scale, device: torch.device) -> None:
        """Make all but the store."""
        self.scale = scale
        self.trunk_config = Sam3ViTConfig(**scale.trunk)
        self.trunk = folder / "trunk"
        self.workers = min(_MOST_WORKERS, usable_cores())
        self._folder = folder
        with torch.device("meta"):
            whole = Sam3ViTModel(self.trunk_config).eval()
        size = self.trunk_config.image_size
        self.trunk_gflops = 2 * trace(whole, (1, 3, size, size))[1] / 1e9  # of one image
        with device:  # random numbers are quick there
            Sam3ViTModel(self.trunk_config).save_pretrained(self.trunk)
        config = self.trunk_config
        self.manifest = StoreManifest(
            embed_dim=config.hidden_size,
            embed_size=config.image_size // config.patch_size,
            preprocessing=sam3_preprocessing(config.image_size),
        )
        affordable = free_space(folder) // (_DISK_SHARE * self.manifest.record_size)
        self.images = min(scale.images, affordable)
        self._write_images()

    def write_store(self) -> float:
        """Write a record of noise for each image; returns how many were written in a second."""
        generator = np.random.default_rng(0)
        shape = (self.manifest.embed_dim, self.manifest.embed_size, self.manifest.embed_size)
        noise = [generator.standard_normal(shape, np.float32).astype("<f2") for _ in range(self.scale.different_images)]
        measured = [ChannelStatistics.measure(torch.from_numpy(grid).float()) for grid in noise]
        payloads = np.stack([grid.reshape(-1).view(np.uint8) for grid in noise])
        seeds = np.zeros((len(noise), self.manifest.record_size - payloads.shape[1]), np.uint8)
        records = np.concatenate([seeds, payloads], axis=1)
        self._store.mkdir()
        write_store_manifest(self._store, self.manifest)
        shard = Shard(self._store, 0)
        statistics = ShardStatistics(shard, self.manifest.embed_dim)
        start = time.monotonic()
        with BackgroundWriter(shard, self.manifest.record_size, statistics) as writer:
            for number in range(self.images):
                same = number % len(records)
                writer.append(f"sa_{number}", records[same], measured[same])
        return self.images / (time.monotonic() - start)

    def embedding(self, batch: int, device: torch.device) -> EmbedPlan:
        """Embedding the images."""
        config = ExportConfig(
            DATA=ExportDataConfig(**self._data(batch)),
            MODEL=TeacherConfig(RESUME=self.trunk),
            OUTPUT=self._folder / "embedded",
            DEVICE=device.type,
        )
        return plan_embedding(config)

    def training(self, student: str, batch: int, device: torch.device) -> TrainConfig:
        """A training of a student from the store."""
        return TrainConfig(
            DATA=DataConfig(**self._data(batch)),
            MODEL=StudentConfig(BACKBONE=backbone_of(student), PRETRAINED=False),
            DISTILL=DistillConfig(TEACHER_EMBED_PATH=self._store),
            TRAIN=TrainSettings(WARMUP_EPOCHS=0, AUTO_RESUME=False),
            OUTPUT=self._folder / "student",
            DEVICE=device.type,
        )

    @property
    def _store(self) -> Path:
        return self._folder / "store"

    def _data(self, batch: int) -> dict[str, Any]:
        return {
            "DATA_PATH": self._folder,
            "BATCH_SIZE": batch,
            "NUM_WORKERS": self.workers if self.scale.seconds else 0,
        }

    def _write_images(self) -> None:
        folders = [self._folder / "images" / split for split in ("train", "val")]
        for folder in folders:
            folder.mkdir(parents=True)
        generator = np.random.default_rng(0)
        paths = [folders[0] / f"sa_{number}.jpg" for number in range(self.images)]
        different = paths[: self.scale.different_images]
        for path in different:
            Image.fromarray(_noise(self.scale.image, generator)).save(path, quality=90)
        for number, path in enumerate(paths[len(different) :]):
            os.link(different[number % len(different)], path)


def _noise(size: tuple[int, int], generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Coarse noise under fine: about as many bytes of JPEG a pixel as a photograph takes."""
    height, width = size
    coarse = generator.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noise: npt.NDArray[np.uint8] = np.clip(smooth + generator.integers(-2, 3, (height, width, 1)), 0, 255).astype(
        np.uint8
    )
    return noise
