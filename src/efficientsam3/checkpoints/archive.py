"""The zip archives that `torch.save` writes, checked before PyTorch reads them.

PyTorch compares no checksum, and maps or unpacks whatever an archive declares.
"""

import struct
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import open_regular

_LARGEST_PICKLE = 1 << 28  # bytes; that of Meta's sam3.pt has 0.2 MB
_READ_SIZE = 1 << 20
_THREADS = 4
_BROKEN = (zipfile.BadZipFile, EOFError, struct.error, NotImplementedError, RuntimeError, ValueError)


def check_archive(path: Path, values: bool) -> None:
    """Check that an archive holds what `torch.save` stored in it.

    Args:
        path: the archive.
        values: also compare every record with its CRC-32: 0.15 s for 100 MB. `torch.save` writes none, which is a zero,
            after `torch.serialization.set_crc32_options(False)`.

    Raises:
        UserError: the archive is broken or changed, holds compressed records, or declares more bytes than it has.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        size = file.seek(0, 2)
        try:
            with zipfile.ZipFile(file) as archive:
                records = archive.infolist()
                _check_sizes(path, records, size)
                if values:
                    _check_values(path, archive, records)
        except UserError:
            raise
        except _BROKEN as error:
            raise UserError(f"Checkpoint {path} is broken or cut short: download or write it again.") from error


def _check_sizes(path: Path, records: list[zipfile.ZipInfo], size: int) -> None:
    """torch.save stores: a compressed record, or one that overlaps others, unpacks to more than the file."""
    packed = next((record for record in records if record.compress_type != zipfile.ZIP_STORED), None)
    if packed is not None:
        raise UserError(
            f"Checkpoint {path} holds the compressed record {packed.filename} of {packed.file_size} bytes, which "
            "torch.save never writes: download or write it again."
        )
    declared = sum(record.file_size for record in records)
    pickled = sum(record.file_size for record in records if record.filename.endswith(".pkl"))
    if declared > size or pickled > _LARGEST_PICKLE:
        raise UserError(
            f"Checkpoint {path} of {size} bytes declares {declared} of content, {pickled} of them pickled, which no "
            "checkpoint has: download or write it again."
        )


def _check_values(path: Path, archive: zipfile.ZipFile, records: list[zipfile.ZipInfo]) -> None:
    def read(record: zipfile.ZipInfo) -> None:
        with archive.open(record) as content:
            while content.read(_READ_SIZE):
                pass

    with ThreadPoolExecutor(_THREADS) as pool:
        checks = [(record, pool.submit(read, record)) for record in records if record.CRC]
        for record, check in checks:
            try:
                check.result()
            except zipfile.BadZipFile as error:
                raise UserError(
                    f"Checkpoint {path} has changed since it was written: its record {record.filename} is not that of "
                    "its CRC-32; download or write it again, or use another one."
                ) from error
