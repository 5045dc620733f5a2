"""SA-1B's archives and folders in a few bytes: content that passes the quick check of `reorg`."""

import io
import tarfile
from pathlib import Path


def jpeg(number: int) -> bytes:
    """Bytes that begin and end like a JPEG, all of one length."""
    return b"\xff\xd8\xff\xda" + b"%08d" % number + b"x" * 200 + b"\xff\xd9"


def annotation(number: int) -> bytes:
    """An annotation without masks, all of one length."""
    return b'{"image": {"image_id": %8d}, "annotations": []}' % number


def pairs(*numbers: int) -> dict[str, bytes]:
    """File name to content, of images with their annotations."""
    images = {f"sa_{number}.jpg": jpeg(number) for number in numbers}
    return images | {f"sa_{number}.json": annotation(number) for number in numbers}


def tar_bytes(files: dict[str, bytes]) -> bytes:
    """An archive of plain files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    """Write an archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(files))
    return path


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    """Write extracted files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def find(root: Path, name: str) -> Path:
    """The one file of that name below a folder."""
    (found,) = root.rglob(name)
    return found
