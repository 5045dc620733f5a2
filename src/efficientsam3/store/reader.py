"""Reading an embedding store."""

import os
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from efficientsam3.data.images import UNKNOWN_IMAGE, ImageStamp
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import open_regular, unreadable
from efficientsam3.store.binding import ENTRY_BYTES, HEADER_BYTES, Binding, Entry
from efficientsam3.store.index import StoreIndex
from efficientsam3.store.manifest import MANIFEST_NAME, StoreManifest, read_store_manifest
from efficientsam3.store.records import SEED_BYTES, unpack_seeds
from efficientsam3.store.scan import known_crc
from efficientsam3.store.shards import CRC_BYTES, file_size, find_shards


class EmbeddingStore:
    """Random access to the committed records of a store, by image id.

    Files are opened on first use in each process, so that a store can be handed to DataLoader workers. Several threads
    may read at once.
    """

    def __init__(
        self, directory: Path, published: StoreManifest | None = None, checksums: bool = True, phrases: bool = False
    ) -> None:
        """Open the store in `directory`.

        Args:
            directory: the store.
            published: describes a store in the published format, which has no manifest of its own.
            checksums: verify each record on reading, if the store has checksums.
            phrases: whether it may be one of phrases.

        Raises:
            UserError: there is no store, its files disagree, or it has no manifest and `published` is not given.
        """
        if not os.path.isdir(directory):
            raise UserError(
                f"Embedding store {directory} does not exist: run stage1/scripts/save_stage1_embeddings.sh first, or "
                "set DISTILL.TEACHER_EMBED_PATH."
            )
        manifest = read_store_manifest(directory, phrases) or published
        if manifest is None:
            raise UserError(f"{directory} has no {MANIFEST_NAME}: it is not an embedding store of this project.")
        self.directory, self.manifest = directory, manifest
        self.codec = manifest.build_codec(directory)
        self.shards = tuple(find_shards(directory))
        self.index = StoreIndex(self.shards, manifest.record_size)
        self._record_size = manifest.record_size
        self._checksums = checksums
        # How many records each shard has a checksum of, in either file.
        self._entries = [Binding(shard).count for shard in self.shards]
        self._crcs = [file_size(shard.crc_path) // CRC_BYTES for shard in self.shards]
        self._files: dict[tuple[int, Path], BinaryIO] = {}

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
            UserError: the record is damaged (its checksum says so), or its file has become shorter or cannot be read.
        """
        number, position = self.index.place(row)
        shard, buffer = self.shards[number], memoryview(record.numpy().data)
        self._fill(shard.values_path, buffer, position * self._record_size)
        if self._checksums:
            expected = self._checksum(number, position)
            if expected is not None and zlib.crc32(buffer) != expected:
                raise UserError(
                    f"The record of image {os.fsdecode(self.ids[row])!r} in {shard.values_path} is damaged (checksum): "
                    f"restore that file from a copy, or run `efficientsam3 store verify --repair {self.directory}` and "
                    "embed again."
                )

    def check_image(self, row: int, image: ImageStamp) -> None:
        """Refuse an image that is not the one that a record was computed from, as far as that is known.

        Raises:
            UserError: its file holds something else now.
        """
        known = self.read_image_stamp(row)
        if UNKNOWN_IMAGE not in (image, known) and image != known:
            raise replaced_image(os.fsdecode(self.ids[row]), self.directory)

    def image_sizes(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Bytes of the file of each row's image when it was embedded, at once; 0 where that is not known."""
        tables = [Binding(shard).image_sizes() for shard in self.shards]
        starts = np.cumsum([0, *map(len, tables)])
        sizes = np.concatenate([*tables, np.zeros(1, np.int64)])  # the last one for what is not bound
        counts, (shard_of, position_of) = np.diff(starts), self.index.places(rows)
        return sizes[np.where(position_of < counts[shard_of], starts[shard_of] + position_of, -1)]

    def read_image_stamp(self, row: int) -> ImageStamp:
        """What the file of a record's image held when it was embedded; UNKNOWN_IMAGE where that is not known.

        Raises:
            UserError: the file that says so has become shorter or cannot be read.
        """
        entry = self._entry(*self.index.place(row))
        return UNKNOWN_IMAGE if entry is None else entry.image

    def read_seed(self, row: int) -> int:
        """The augmentation seed of a record, without reading the rest; `read_into` checks the checksum.

        Raises:
            UserError: the record's file has become shorter or cannot be read.
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
            (B,) int32 augmentation seeds and (B, embed_dim, embed_size, embed_size) float32 embeddings, of phrases
            (B, embed_dim, 1, embed_size).
        """
        return unpack_seeds(records), self.codec.decode(records[:, SEED_BYTES:])

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_files": {}}

    def _entry(self, number: int, position: int) -> Entry | None:
        if position >= self._entries[number]:
            return None
        content = bytearray(ENTRY_BYTES)
        self._fill(self.shards[number].bound_path, memoryview(content), HEADER_BYTES + position * ENTRY_BYTES)
        return Entry.unpack(position, bytes(content))

    def _checksum(self, number: int, position: int) -> int | None:
        entry = self._entry(number, position)
        if entry is not None or position >= self._crcs[number]:
            return None if entry is None else entry.record_crc
        stored = bytearray(CRC_BYTES)
        self._fill(self.shards[number].crc_path, memoryview(stored), position * CRC_BYTES)
        return known_crc(bytes(stored))

    def _fill(self, path: Path, buffer: memoryview, offset: int) -> None:
        key = (os.getpid(), path)
        while buffer:
            try:
                # Two threads may open the file at once; both then use the first one's.
                file = self._files.get(key) or self._files.setdefault(key, open_regular(path, buffering=0))
                count = os.preadv(file.fileno(), [buffer], offset)
            except OSError as error:
                raise unreadable(path, error) from error
            if not count:
                raise UserError(f"{path} has become shorter while being read: restore it from a copy, or embed again.")
            buffer, offset = buffer[count:], offset + count


def replaced_image(image_id: str, directory: Path, count: int = 1) -> UserError:
    """The sentence for an image whose file is not the one that was embedded, and how many there are."""
    more = f" and {count - 1} more are" if count > 1 else " is"
    return UserError(
        f"Image {image_id!r}{more} not what the embeddings in {directory} were computed from, since the file was "
        f"replaced or renamed: put it back, or run `efficientsam3 store verify {directory} --data-path DIR --repair` "
        "to drop the records of such images, and embed again."
    )
