"""The steps from images to a deployed model, each a command of its own."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficientsam3.data.layouts import DatasetName
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import sha256_file, write_json
from efficientsam3.runtime.json_files import read_json_object
from efficientsam3.runtime.request import shorten
from efficientsam3.train.folder import BEST_NAME
from efficientsam3.workflow.request import DistillRequest

RECORD_NAME = "steps.json"
_LARGEST_RECORD = 1 << 20  # bytes
_MOST_IMAGES, _MOST_OBJECTS = 100, 4


@dataclass(frozen=True)
class Step:
    """One command."""

    name: str
    command: tuple[str, ...]
    processes: int = 1  # more than one are torchrun's
    resumes: bool = False  # whether the command itself determines what is left to do, and always runs


def first_steps(request: DistillRequest) -> list[Step]:
    """The steps up to the trained student."""
    train = _distributed(request, "train", request.train_config)
    if request.online:
        return [train]
    plan = Step("plan", ("efficientsam3", "plan", "--cfg", str(request.embed_config)))
    return [plan, _distributed(request, "embed", request.embed_config), train]


def last_steps(request: DistillRequest, checkpoint: Path, annotated: bool) -> list[Step]:
    """The steps from the trained student in `checkpoint` on."""
    sam3 = str(request.sam3)
    merge = ["efficientsam3", "merge", "--student-ckpt", str(checkpoint), "--sam3-ckpt", sam3]
    merge += ["--output", str(request.merged), "--format", "hf" if request.sam3.is_dir() else "native"]
    steps = [Step("merge", tuple(merge))]
    if not annotated:
        return steps
    teacher = request.sam3 if request.online else request.teacher_dir / "embeddings"
    evaluate = ["efficientsam3", "evaluate", f"teacher={teacher}", f"student={checkpoint}", "zeros", "random"]
    evaluate += ["--decoder", sam3, "--data", str(request.images), "--prompt", "box", "point"]
    evaluate += ["--max-images", str(_MOST_IMAGES), "--max-objects", str(_MOST_OBJECTS)]
    evaluate += ["--device", request.device, "--out", str(request.out / "evaluate")]
    return [Step("evaluate", tuple(evaluate)), *steps]


def _distributed(request: DistillRequest, name: str, config: Path) -> Step:
    command: tuple[str, ...] = ("efficientsam3", name, "--cfg", str(config))
    if request.processes > 1:
        count = str(request.processes)
        command = ("torchrun", "--standalone", "--nproc-per-node", count, "--no-python", *command)
    return Step(name, command, request.processes, resumes=True)


def best_checkpoint(student_dir: Path) -> Path:
    """The training's best checkpoint according to `best.json`; the last one where nothing was validated.

    Raises:
        UserError: `best.json` is damaged or names no checkpoint of this folder, or there are no checkpoints.
    """
    best = student_dir / BEST_NAME
    numbered = {int(path.stem[11:]): path for path in student_dir.glob("ckpt_epoch_*.pth") if path.stem[11:].isdigit()}
    if not numbered:
        raise UserError(f"{student_dir} has no checkpoint of an epoch: run the same command again, which trains.")
    last = numbered[max(numbered)]
    if best.is_file():
        remedy = f"remove it, and the same command goes on with the last checkpoint, {last.name}"
        name = read_json_object(best, remedy, _LARGEST_RECORD).get("path")
        if not isinstance(name, str) or Path(name).name != name or not (student_dir / name).is_file():
            raise UserError(f"{best} names {shorten(repr(name))}, which is no checkpoint of its folder: {remedy}.")
        return student_dir / name
    return last


class Record:
    """OUT/steps.json: which steps are complete, with their commands and the checkpoint that they read."""

    def __init__(self, folder: Path) -> None:
        """Read the record, if there is one.

        Raises:
            UserError: it is damaged.
        """
        self._path = folder / RECORD_NAME
        self._done: dict[str, Any] = {}
        if os.path.lexists(self._path):
            remedy = "remove it, and the steps that it recorded run again"
            self._done = read_json_object(self._path, remedy, _LARGEST_RECORD)

    def has(self, step: Step, inputs: Sequence[Path] = ()) -> bool:
        """Whether this very step is complete."""
        return self._done.get(step.name) == _mark(step, inputs)

    def add(self, step: Step, inputs: Sequence[Path] = ()) -> None:
        """Record that the step is complete."""
        self._done[step.name] = _mark(step, inputs)
        write_json(self._path, self._done)


def _mark(step: Step, inputs: Sequence[Path]) -> dict[str, Any]:
    return {"command": list(step.command), "inputs": {str(path): sha256_file(path) for path in inputs}}


def closing_lines(request: DistillRequest, dataset: DatasetName, annotated: bool) -> list[str]:
    """How to use the merged model."""
    report = request.out / "evaluate" / "report.html"
    fused = request.merged.with_stem(f"{request.merged.stem}_fused")
    lines = [f"model    {request.merged}"]
    if annotated:
        lines.append(f"report   {report} (open it in a browser)")
    else:
        lines.append(
            f"figures  {request.student_dir / 'metrics.jsonl'}: there are no masks to measure with in {dataset}"
        )
    return [
        *lines,
        f"use it   efficientsam3 predict {request.merged} IMAGE --text 'a dog' --out masks",
        "or       from efficientsam3 import EfficientSAM3",
        f'         image = EfficientSAM3.from_pretrained("{request.merged}").encode("IMAGE")',
        '         image.segment(text="a dog")',
        f"faster   efficientsam3 fuse {request.merged} --output {fused}",
    ]
