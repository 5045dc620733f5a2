"""The configurations that `efficientsam3 distill` writes for the single commands."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import yaml
from pydantic import TypeAdapter

from efficientsam3.config.load import load_config
from efficientsam3.config.schema import ExportConfig, TrainConfig
from efficientsam3.data.layouts import DatasetName, list_images
from efficientsam3.data.split import SPLITS
from efficientsam3.merge.inputs import original_trunk
from efficientsam3.models.build import build_student
from efficientsam3.models.student import StudentArchitecture, check_student_grid, is_known_backbone
from efficientsam3.models.students import STUDENTS, TIMM_PREFIX, backbone_of
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import write_text
from efficientsam3.sam3.contents import read_contents
from efficientsam3.workflow.request import DistillRequest

_LONGEST_WARMUP = 5  # epochs
_PRETRAINED = TypeAdapter[bool | Path](bool | Path)  # as in the schema
_WARMUP_SHARE = 0.1  # of the epochs


def find_backbone(student: str) -> str:
    """The backbone of a student that is named by its configuration (es_ev_s), its backbone, or `timm/<name>`.

    Raises:
        UserError: there is no such student, nor such a model in timm.
    """
    backbone = backbone_of(student)
    if is_known_backbone(backbone):
        return backbone
    known = [*STUDENTS, *(TIMM_PREFIX + model for model in timm.list_models())]
    close = get_close_matches(student, known, n=1)
    meant = f"did you mean {close[0]}? Else " if close else ""
    raise UserError(f"--student {student} is not known: {meant}give one of {', '.join(STUDENTS)}, or timm/<name>.")


def write_configs(request: DistillRequest, dataset: DatasetName, annotated: bool) -> None:
    """Check the request and write both configurations.

    Raises:
        UserError: there are no images, the checkpoint is not SAM3's, the student is unknown, the weights that it would
            start from are not available, or a value is wrong.
    """
    if not any(len(list_images(request.images, split, dataset)) for split in SPLITS):
        raise UserError(f"--images {request.images} has no images (.jpg .jpeg .png .webp): give another folder.")
    trunk = original_trunk(read_contents(request.sam3))
    pretrained = _PRETRAINED.validate_python(request.pretrained)
    size, width, grid = trunk.image_size, trunk.hidden_size, trunk.image_size // trunk.patch_size
    backbone = find_backbone(request.student)
    head, normalize, scaling = _recipe(request)
    architecture = StudentArchitecture(backbone, width, grid, size, head)
    check_student_grid(architecture)
    if pretrained and not _has_begun(request):  # now rather than after days of embedding
        build_student(architecture, pretrained)
    data = {
        "DATA_PATH": str(request.images),
        "DATASET": dataset,
        "BATCH_SIZE": request.batch_size,
        "NUM_WORKERS": request.workers,
    }
    common = {"DATA": data, "DEVICE": request.device, "SEED": request.seed}
    teacher = {"NAME": "sam3", "RESUME": str(request.sam3)}
    export = common | {
        "MODEL": teacher,
        "DISTILL": {"CODEC": request.codec},
        "OUTPUT": str(request.teacher_dir),
    }
    source = {"ONLINE": True} if request.online else {"TEACHER_EMBED_PATH": str(request.teacher_dir / "embeddings")}
    train = common | {
        "MODEL": {
            "NAME": request.student,
            "BACKBONE": backbone,
            "HEAD": head,
            "PRETRAINED": pretrained if isinstance(pretrained, bool) else str(pretrained),
        },
        "DISTILL": {**source, "NORMALIZE": normalize}
        | ({"MASKS": {"DECODER": str(request.sam3)}} if request.masks else {}),
        "TRAIN": {
            "EPOCHS": request.epochs,
            "WARMUP_EPOCHS": min(_LONGEST_WARMUP, _WARMUP_SHARE * request.epochs),
            "LR_SCALING": scaling,
        },
        "OUTPUT": str(request.student_dir),
    }
    if request.online:
        train["TEACHER"] = teacher
    if annotated:
        train["PROBE"] = {"DECODER": str(request.sam3)}
    if not request.online:
        _write(request.embed_config, "efficientsam3 embed", export, ExportConfig)
    _write(request.train_config, "efficientsam3 train", train, TrainConfig)


def _has_begun(request: DistillRequest) -> bool:
    return any(request.student_dir.glob("ckpt_*.pth"))


def _recipe(request: DistillRequest) -> tuple[str, str, str]:
    """Head, NORMALIZE and LR_SCALING; a training that has begun keeps those it began with, by an earlier version, too.

    Raises:
        UserError: its configuration is damaged.
    """
    if not (_has_begun(request) and request.train_config.is_file()):
        return request.head, "channel", "steps"  # as measured, see docs/experiments.md
    begun = load_config(TrainConfig, request.train_config)
    head = request.head if "head" in request.model_fields_set else begun.MODEL.HEAD
    # What was not written down had the defaults of before.
    normalize = begun.DISTILL.NORMALIZE if "NORMALIZE" in begun.DISTILL.model_fields_set else "none"
    scaling = begun.TRAIN.LR_SCALING if "LR_SCALING" in begun.TRAIN.model_fields_set else "sqrt"
    return head, normalize, scaling


def _write(path: Path, command: str, values: dict[str, Any], schema: type[ExportConfig | TrainConfig]) -> None:
    text = yaml.safe_dump(values, sort_keys=False)
    write_text(path, f"# {command} --cfg {path}\n# Each key is described in efficientsam3/config/schema.py.\n{text}")
    load_config(schema, path)  # names what is wrong
