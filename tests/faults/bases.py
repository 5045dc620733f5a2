"""What the rows spoil copies of: a small dataset, a SAM3, an export, a training, merged models.

python -m faults.bases DIR     writes all of them
"""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

CHECKOUT = Path(os.environ.get("FAULTS_CHECKOUT", Path(__file__).parents[2]))
# Of the small SAM3, like `tiny.TINY_OPTS`, which this must not import: see faults.fault.
TINY = ["DATA.IMG_SIZE", "224", "DISTILL.EMBED_SIZE", "16", "DISTILL.EMBED_DIM", "64", "DATA.NUM_WORKERS", "0"]
_CODE = "from efficientsam3.cli import main; raise SystemExit(main())"
FindBase = Callable[[str], Path]


def _data(path: Path, _: FindBase) -> None:
    from efficientsam3.testing.sample_images import write_sample_images

    write_sample_images(path, train=12, val=4)


def _sam3(path: Path, _: FindBase) -> None:
    from efficientsam3.testing.tiny_sam3 import write_tiny_sam3

    write_tiny_sam3(path)


def _teacher(path: Path, base: FindBase) -> None:
    cfg = CHECKOUT / "stage1/configs/teacher/sam_vit_huge_sa1b.yaml"
    line = ["export", "--cfg", cfg, "--data-path", base("data"), "--output", path, "--resume", base("sam3")]
    with socket.create_server(("localhost", 0)) as free:
        group = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    _run([[*line, "--batch-size", 2, "--opts", *TINY]] * 2, group)


def _training(path: Path, base: FindBase) -> None:
    line = ["train", "--cfg", CHECKOUT / "stage1/configs/es_ev_s.yaml", "--data-path", base("data"), "--output", path]
    keys = ["DISTILL.TEACHER_EMBED_PATH", base("teacher") / "embeddings", "TRAIN.EPOCHS", 2, "TRAIN.WARMUP_EPOCHS", 0]
    _run([[*line, "--batch-size", 2, "--pretrained", "false", "--opts", *TINY, *keys]])


def _student(path: Path, base: FindBase) -> None:
    path.write_bytes((base("training") / "ckpt_epoch_1.pth").read_bytes())


def _merged(path: Path, base: FindBase) -> None:
    _run([["merge", "--student-ckpt", base("student"), "--sam3-ckpt", base("sam3"), "--output", path]])


def _hf(path: Path, base: FindBase) -> None:
    models = ["--student-ckpt", base("student"), "--sam3-ckpt", base("sam3")]
    _run([["merge", *models, "--output", path, "--format", "hf"]])


def _onnx(path: Path, base: FindBase) -> None:
    _run([["export-onnx", base("merged"), "--out", path]])


# Name -> the file's or folder's name, and what makes it.
BASES: dict[str, tuple[str, Callable[[Path, FindBase], None]]] = {
    "data": ("data", _data),  # 12 training images and 4 for validation in SA-1B's layout, with annotations
    "sam3": ("sam3.pt", _sam3),
    "teacher": ("teacher", _teacher),  # OUTPUT of the export of `data`, by two processes
    "training": ("training", _training),  # OUTPUT of a training of two epochs on `teacher`
    "student": ("student.pth", _student),  # its last checkpoint
    "merged": ("merged.pt", _merged),
    "hf": ("hf", _hf),
    "onnx": ("onnx", _onnx),
}


def make_base(name: str, path: Path, base: FindBase) -> None:
    """Write the base `name` to `path`; `base` finds those that it is made of."""
    BASES[name][1](path, base)


def _run(lines: list[list[object]], group: dict[str, str] | None = None) -> None:
    """Run the lines of `efficientsam3` at once, as the processes of a group."""
    processes = []
    for rank, line in enumerate(lines):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if group else {}
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **(group or {}), **ranks}
        command = [sys.executable, "-c", _CODE, *(str(part) for part in line)]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    for process in processes:
        out, _ = process.communicate(timeout=240)
        assert process.returncode == 0, out.decode(errors="replace")


def _main(directory: Path) -> None:
    def base(name: str) -> Path:
        path = directory / name / BASES[name][0]
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            make_base(name, path, base)
        return path

    for name in BASES:
        print(base(name), flush=True)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
