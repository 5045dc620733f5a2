"""Reading an embedding store."""

import os
import zlib
from io import FileIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from efficientsam3.runtime.errors import UserError
from efficientsam3.store.index import StoreIndex
from efficientsam3.store.manifest import MANIFEST_NAME, StoreManifest, read_store_manifest
from efficientsam3.store.records import SEED_BYTES, unpack_seeds
from efficientsam3.store.shards import CRC_BYTES, find_shards


class EmbeddingStore:
    """Random access to the committed records of a store, by image id.

    Files are opened on first use in each process, so that a store can be handed to DataLoader workers. Several threads
    may read at once.
    """

    def __init__(self, directory: Path, published: StoreManifest | None = None, checksums: bool = True) -> None:
        """Open the store in `directory`.

        Args:
            directory: the store.
            published: describes a store in the published format, which has no manifest of its own.
            checksums: verify each record on reading, if the store has checksums.

        Raises:
            UserError: there is no store, its files disagree, or it has no manifest and `published` is not given.
        """
        if not directory.is_dir():
            raise UserError(
                f"Embedding store {directory} does not exist: run stage1/scripts/save_stage1_embeddings.sh first, or "
                "set DISTILL.TEACHER_EMBED_PATH."
            )
        manifest = read_store_manifest(directory) or published
        if manifest is None:
            raise UserError(f"{directory} has no {MANIFEST_NAME}: it is not an embedding store of this project.")
        self.directory, self.manifest = directory, manifest
        self.codec = manifest.build_codec(directory)
        self.shards = tuple(find_shards(directory))
        self.index = StoreIndex(self.shards, manifest.record_size)
        self._record_size = manifest.record_size
        self._checked = [checksums and shard.crc_path.exists() for shard in self.shards]
        self._files: dict[tuple[int, Path], FileIO] = {}

    def __len__(self) -> int:
        """Number of images."""
        return len(self.index)

    @property
    def ids(self) -> npt.NDArray[np.bytes_]:
        """Image ids, sorted, as a bytes array."""
        return self.index.ids

    def rows(self, ids: npt.NDArray[np.bytes_]) -> npt.NDArray[np.int64]:
        """Rows of image ids in the index, -1 where the store has no embedding for one."""
        return self.index.rows(ids)

    def read(self, row: int) -> torch.Tensor:
        """One undecoded record, (record_size,) uint8; errors as for `read_into`."""
        record = torch.empty(self._record_size, dtype=torch.uint8)
        self.read_into(row, record)
        return record

    def read_into(self, row: int, record: torch.Tensor) -> None:
        """Read one undecoded record into (record_size,) uint8, contiguous, on the CPU, without another copy.

        Raises:
            UserError: the record is damaged (its checksum says so), or its file has become shorter.
        """
        number, position = self.index.place(row)
        shard, buffer = self.shards[number], memoryview(record.numpy().data)
        self._fill(shard.values_path, buffer, position * self._record_size)
        if self._checked[number]:
            stored = bytearray(CRC_BYTES)
            self._fill(shard.crc_path, memoryview(stored), position * CRC_BYTES)
            if zlib.crc32(buffer) != int.from_bytes(stored, "little"):
                raise UserError(
                    f"The record of image {self.ids[row].decode()!r} in {shard.values_path} is damaged (checksum): "
                    f"restore that file from a copy, or run `efficientsam3 store verify --repair {self.directory}` and "
                    "embed again."
                )

    def read_seed(self, row: int) -> int:
        """The augmentation seed of a record, without reading the rest; `read_into` checks the checksum.

        Raises:
            UserError: the record's file has become shorter.
        """
        number, position = self.index.place(row)
        seed = bytearray(SEED_BYTES)
        self._fill(self.shards[number].values_path, memoryview(seed), position * self._record_size)
        return int.from_bytes(seed, "little", signed=True)

    def decode(self, records: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode on the device that holds the records.

        Args:
            records: (B, record_size) uint8.

        Returns:
            (B,) int32 augmentation seeds and (B, embed_dim, embed_size, embed_size) float32 embeddings.
        """
        return unpack_seeds(records), self.codec.decode(records[:, SEED_BYTES:])

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_files": {}}

    def _fill(self, path: Path, buffer: memoryview, offset: int) -> None:
        key = (os.getpid(), path)
        # Two threads may open the file at once; both then use the first one's.
        file = self._files.get(key) or self._files.setdefault(key, path.open("rb", buffering=0))
        while buffer:
            count = os.preadv(file.fileno(), [buffer], offset)
            if not count:
                raise UserError(f"{path} has become shorter while being read: restore it from a copy, or embed again.")
            buffer, offset = buffer[count:], offset + count
