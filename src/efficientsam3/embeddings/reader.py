"""Reading an embedding store."""

import os
import zlib
from collections.abc import Sequence
from io import FileIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from efficientsam3.embeddings.codecs import SEED_BYTES, unpack_seeds
from efficientsam3.embeddings.manifest import MANIFEST_NAME, Manifest, read_manifest
from efficientsam3.embeddings.shards import CRC_BYTES, find_shards
from efficientsam3.runtime.errors import UserError


class EmbeddingStore:
    """Random access to the committed records of a store, by image id.

    The index is three arrays, sorted by id. Files are opened on first use in each process, so that a store can be
    handed to DataLoader workers.
    """

    def __init__(self, directory: Path, published: Manifest | None = None) -> None:
        """Open the store in `directory`.

        Args:
            directory: the store.
            published: describes a store in the published format, which has no manifest of its own.

        Raises:
            UserError: there is no store, its files disagree, or it has no manifest and `published` is not given.
        """
        if not directory.is_dir():
            raise UserError(
                f"Embedding store {directory} does not exist: run stage1/scripts/save_stage1_embeddings.sh first, or "
                "set DISTILL.TEACHER_EMBED_PATH."
            )
        manifest = read_manifest(directory) or published
        if manifest is None:
            raise UserError(f"{directory} has no {MANIFEST_NAME}: it is not an embedding store of this project.")
        self.directory, self.manifest = directory, manifest
        self._codec = manifest.build_codec()
        self._record_size = manifest.record_size
        self._shards = list(find_shards(directory))
        self._ids, self._shard_of, self._position_of = self._index()
        self._files: dict[tuple[int, Path], FileIO] = {}

    def __len__(self) -> int:
        """Number of images."""
        return len(self._ids)

    @property
    def ids(self) -> npt.NDArray[np.bytes_]:
        """Image ids, sorted, as a bytes array."""
        return self._ids

    def rows(self, ids: npt.NDArray[np.bytes_]) -> npt.NDArray[np.int64]:
        """Rows of image ids in the index, -1 where the store has no embedding for one."""
        if len(self._ids) == 0 or len(ids) == 0:
            return np.full(len(ids), -1, np.int64)
        rows = np.searchsorted(self._ids, ids)
        rows[rows == len(self._ids)] = 0
        return np.where(self._ids[rows] == ids, rows, -1)

    def read(self, row: int) -> torch.Tensor:
        """One undecoded record, (record_size,) uint8, verified against its checksum where the store has one.

        Raises:
            UserError: the record is damaged, or its file has become shorter.
        """
        shard, position = self._shards[self._shard_of[row]], int(self._position_of[row])
        record = np.empty(self._record_size, np.uint8)
        self._fill(shard.values_path, memoryview(record.data), position * self._record_size)
        if shard.crc_path.exists():
            stored = bytearray(CRC_BYTES)
            self._fill(shard.crc_path, memoryview(stored), position * CRC_BYTES)
            if zlib.crc32(record.data) != int.from_bytes(stored, "little"):
                raise UserError(
                    f"The record of image {self._ids[row].decode()!r} in {shard.values_path} is damaged (checksum): "
                    "restore that file from a copy, or delete this shard's files and export again."
                )
        return torch.from_numpy(record)

    def decode(self, records: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode on the device that holds the records.

        Args:
            records: (B, record_size) uint8.

        Returns:
            (B,) int32 augmentation seeds and (B, embed_dim, embed_size, embed_size) float32 embeddings.
        """
        return unpack_seeds(records), self._codec.decode(records[:, SEED_BYTES:])

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_files": {}}

    def _index(self) -> tuple[npt.NDArray[np.bytes_], npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        keys: list[Sequence[bytes]] = []
        for shard in self._shards:
            keys.append(shard.read_keys())
            shard.check_sizes(len(keys[-1]), self._record_size)
        counts = [len(part) for part in keys]
        arrays = [np.array(part, dtype=np.bytes_) for part in keys if part]
        ids = np.concatenate(arrays) if arrays else np.empty(0, "S1")
        shard_of = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        position_of = np.concatenate([np.arange(count) for count in counts]) if counts else np.empty(0, np.int64)
        # np.unique keeps the first of equal ids: two runs on different shards may both have exported an image.
        ids, first = np.unique(ids, return_index=True)
        return ids, shard_of[first], position_of[first]

    def _fill(self, path: Path, buffer: memoryview, offset: int) -> None:
        file = self._files.get((os.getpid(), path))
        if file is None:
            file = self._files[os.getpid(), path] = path.open("rb", buffering=0)
        file.seek(offset)
        while buffer:
            count = file.readinto(buffer)
            if not count:
                raise UserError(
                    f"{path} has become shorter while it was read: restore it from a copy, or export again."
                )
            buffer = buffer[count:]
