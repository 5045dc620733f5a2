"""What the unit tests share: configurations for a small export, small students, and a small merged model."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from box_decoder import box_model
from efficientsam3.config.load import load_config
from efficientsam3.config.schema import ExportConfig, TrainConfig
from efficientsam3.data.preprocess import SAM3_PREPROCESSING
from efficientsam3.embed.plan import plan_embedding
from efficientsam3.embed.run import embed_dataset
from efficientsam3.models.student import Student, StudentArchitecture
from efficientsam3.runtime.distributed import Process
from sam_decoder import write_sam
from sharing import made_once
from tiny import TINY_OPTS

CONFIGS = Path(__file__).parents[2] / "stage1" / "configs"
ONE = Process(rank=0, world_size=1, device=torch.device("cpu"), launcher=None)
MakeExport = Callable[..., ExportConfig]
MakeTraining = Callable[..., TrainConfig]


@pytest.fixture
def one_process() -> Process:
    """This process, alone."""
    return ONE


@pytest.fixture(scope="session")
def store_path(tmp_path_factory: pytest.TempPathFactory, tiny_sam3_path: Path, photographs_path: Path) -> Path:
    """OUTPUT of an export of `photographs_path`. Not to be changed: copy it first."""
    return made_once(
        tmp_path_factory,
        "teacher",
        lambda output: embed_dataset(plan_embedding(_export(tiny_sam3_path, photographs_path, output)), ONE),
    )


@pytest.fixture
def make_export(tmp_path: Path, tiny_sam3_path: Path, photographs_path: Path) -> MakeExport:
    """Builds export configurations, with more options and paths where given."""

    def make(*opts: str, data: Path | None = None, output: Path | None = None) -> ExportConfig:
        return _export(tiny_sam3_path, data or photographs_path, output or tmp_path / "teacher", *opts)

    return make


@pytest.fixture
def make_training(tmp_path: Path, store_path: Path, photographs_path: Path) -> MakeTraining:
    """Builds training configurations of three epochs without warm-up, by a rate that few steps do not raise."""

    def make(
        *opts: str,
        store: Path | None = None,
        data: Path | None = None,
        online: bool = False,
        cfg: str | None = None,  # one as it is shipped
    ) -> TrainConfig:
        fixed = {
            "DATA.DATA_PATH": data or photographs_path,
            "OUTPUT": tmp_path / "student",
            "DISTILL.TEACHER_EMBED_PATH": None if online else (store or store_path) / "embeddings",
        }
        brief = ["MODEL.PRETRAINED", "false", "TRAIN.EPOCHS", "3", "TRAIN.WARMUP_EPOCHS", "0", "DATA.BATCH_SIZE", "2"]
        rate = ["TRAIN.LR_SCALING", "none"] if cfg is None else []
        return load_config(TrainConfig, CONFIGS / (cfg or "es_ev_s.yaml"), [*TINY_OPTS, *brief, *rate, *opts], fixed)

    return make


def _export(teacher: Path, data: Path, output: Path, *opts: str) -> ExportConfig:
    fixed = {"MODEL.RESUME": teacher, "DATA.DATA_PATH": data, "OUTPUT": output}
    return load_config(ExportConfig, CONFIGS / "teacher" / "sam_vit_huge_sa1b.yaml", [*TINY_OPTS, *opts], fixed)


IMAGE_SIZE = 224  # of the small SAM3; its embeddings have 64 channels on 16 x 16 cells


@pytest.fixture(scope="session")
def student_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function from backbone and head to a training checkpoint that fits the small SAM3, one step trained."""

    def make(backbone: str = "efficientvit_b0", head: str = "published") -> Path:
        name = f"students/{backbone.replace('/', '_')}_{head}.pth"
        return made_once(
            tmp_path_factory, name, lambda path: torch.save(training_checkpoint(backbone, head=head), path)
        )

    return make


def training_checkpoint(backbone: str, **architecture: Any) -> dict[str, Any]:
    """What training writes, after one step on noise, so that BatchNorm's counters have moved."""
    torch.manual_seed(0)
    values = {"embed_dim": 64, "embed_size": 16, "image_size": IMAGE_SIZE} | architecture
    student = Student(StudentArchitecture(backbone, **values)).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)
    student(torch.randn(2, 3, values["image_size"], values["image_size"])).square().mean().backward()
    optimizer.step()
    preprocessing = SAM3_PREPROCESSING.model_copy(update={"image_size": values["image_size"]})
    return {
        "model": student.state_dict(),
        "architecture": asdict(student.architecture),
        "preprocessing": preprocessing.model_dump(),
        "epoch": 0,
    }


Make = Callable[..., Path]


@pytest.fixture(scope="session")
def merged(tiny_sam3_path: Path, student_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole merged model."""
    from efficientsam3.merge.run import merge

    return made_once(
        tmp_path_factory, "merged/whole.pt", lambda path: merge(student_checkpoint(), tiny_sam3_path, path)
    )


@pytest.fixture(scope="session")
def box_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mask decoder of SAM's inputs and outputs that fills the box it is given, see `box_model`."""
    path = tmp_path_factory.mktemp("decoder") / "box.onnx"
    onnx.save(box_model(), path)
    return path


@pytest.fixture(scope="session")
def sam_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a small decoder of SAM's architecture, see `sam_decoder.py`."""
    path = tmp_path_factory.mktemp("decoder") / "sam.onnx"
    write_sam(path)
    return path


@pytest.fixture(scope="session")
def exported(merged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its ONNX directory."""
    from efficientsam3.export.onnx.run import export_onnx

    return made_once(tmp_path_factory, "exported/onnx", lambda path: export_onnx(merged, path))


@pytest.fixture(scope="session")
def with_variants(
    tiny_sam3_path: Path, student_checkpoint: Make, photographs_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An ONNX directory without a detector, with the image encoder in float16 and int8 beside float32."""
    from efficientsam3.export.onnx.run import export_onnx
    from efficientsam3.merge.run import merge

    images = photographs_path / "images" / "train"

    def make(path: Path) -> None:
        model = path.with_name("points.pt")
        merge(student_checkpoint(), tiny_sam3_path, model, keep=["tracker"])
        export_onnx(model, path, variants=["fp16", "int8"], calibrate=images, images=images)

    return made_once(tmp_path_factory, "variants/onnx", make)


@pytest.fixture(scope="session")
def with_trained_necks(
    student_checkpoint: Make, tiny_sam3_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """A function from names of necks, both by default, to a checkpoint of a student with them trained."""
    from efficientsam3.checkpoints.necks import NECK_PREFIXES, digest_neck, is_trained_layer, under
    from efficientsam3.sam3.contents import read_contents

    def write(path: Path, names: tuple[Any, ...]) -> None:
        generator, tensors = torch.Generator().manual_seed(2), read_contents(tiny_sam3_path).tensors
        own = {name: under(tensors, name) for name in names}
        state = {
            NECK_PREFIXES[name] + key: value + 0.05 * torch.randn(value.shape, generator=generator)
            for name in names
            for key, value in own[name].items()
            if is_trained_layer(key)
        }
        necks = {"origins": {name: digest_neck(own[name]) for name in names}, "model": state}
        torch.save(torch.load(student_checkpoint(), weights_only=True) | {"necks": necks}, path)

    def make(*names: str) -> Path:
        chosen = names or ("detector", "tracker")
        name = f"students/necks_{'_'.join(chosen)}.pth"
        return made_once(tmp_path_factory, name, lambda path: write(path, chosen))

    return make


@pytest.fixture(scope="session")
def merged_with_necks(
    tiny_sam3_path: Path, with_trained_necks: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A whole merged model with both necks trained."""
    from efficientsam3.merge.run import merge

    return made_once(
        tmp_path_factory, "merged/necks.pt", lambda path: merge(with_trained_necks(), tiny_sam3_path, path)
    )
