"""Requests that cannot work are refused before any step, and folders are told apart."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from efficientsam3.config.load import load_config
from efficientsam3.config.schema import ExportConfig, TrainConfig
from efficientsam3.runtime.errors import UserError
from efficientsam3.workflow.request import DistillRequest
from efficientsam3.workflow.settings import write_configs


@pytest.fixture
def request_for(tiny_sam3_path: Path, photographs_path: Path, tmp_path: Path) -> DistillRequest:
    return DistillRequest(
        images=photographs_path, sam3=tiny_sam3_path, student="es_ev_s", out=tmp_path / "out", pretrained="false"
    )


def recipe_of(train: TrainConfig) -> tuple[str, str, str]:
    return train.MODEL.HEAD, train.DISTILL.NORMALIZE, train.TRAIN.LR_SCALING


def test_the_shape_is_the_teachers(request_for: DistillRequest) -> None:
    write_configs(request_for, "sa1b", annotated=True)
    export = load_config(ExportConfig, request_for.embed_config)
    train = load_config(TrainConfig, request_for.train_config)
    for config in (export, train):
        assert (config.DATA.IMG_SIZE, config.DISTILL.EMBED_DIM, config.DISTILL.EMBED_SIZE) == ("teacher",) * 3
    assert export.output_dir / "embeddings" == train.DISTILL.TEACHER_EMBED_PATH
    assert recipe_of(train) == ("fpn", "channel", "steps")
    assert train.MODEL.BACKBONE == "efficientvit_b0"
    assert request_for.sam3 == train.PROBE.DECODER


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ({"DISTILL": {"NORMALIZE": "channel"}, "TRAIN": {"LR_SCALING": "none"}}, ("published", "channel", "none")),
        ({"DISTILL": {"ONLINE": True}}, ("published", "none", "sqrt")),
    ],
)
def test_a_training_that_has_begun_keeps_the_recipe_that_an_earlier_version_gave_it(
    request_for: DistillRequest, written: dict[str, Any], kept: tuple[str, str, str]
) -> None:
    request_for.student_dir.mkdir(parents=True)
    (request_for.student_dir / "ckpt_step_3.pth").touch()
    model = {"BACKBONE": "efficientvit_b0", "HEAD": "published"}
    request_for.train_config.write_text(yaml.safe_dump({"MODEL": model, **written}))
    for _ in range(2):  # every run writes the configuration again
        write_configs(request_for, "images", annotated=False)
        assert recipe_of(load_config(TrainConfig, request_for.train_config)) == kept
    write_configs(request_for.model_copy(update={"head": "fpn"}), "images", annotated=False)
    assert load_config(TrainConfig, request_for.train_config).MODEL.HEAD == "fpn"


def test_without_a_store_the_training_has_the_teacher(request_for: DistillRequest) -> None:
    write_configs(request_for.model_copy(update={"online": True}), "sa1b", annotated=False)
    train = load_config(TrainConfig, request_for.train_config)
    assert train.DISTILL.ONLINE
    assert request_for.sam3 == train.TEACHER.RESUME
    assert train.PROBE.DECODER is None
    assert recipe_of(train) == ("fpn", "channel", "steps")
    assert not request_for.embed_config.exists()


def test_the_decoder_is_in_the_loop_where_masks_are_asked_for(request_for: DistillRequest) -> None:
    for online in (False, True):
        write_configs(request_for.model_copy(update={"masks": True, "online": online}), "sa1b", annotated=False)
        assert request_for.sam3 == load_config(TrainConfig, request_for.train_config).DISTILL.MASKS.DECODER
    write_configs(request_for, "sa1b", annotated=False)
    assert load_config(TrainConfig, request_for.train_config).DISTILL.MASKS.DECODER is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": "es_ev_x"}, r"--student es_ev_x is not known: did you mean es_ev_s\? .*es_rv_l"),
        ({"student": "timm/resnet81"}, r"did you mean timm/resnet18\?"),
        ({"pretrained": "true"}, r"--pretrained false"),
        ({"pretrained": "absent.safetensors"}, r"absent\.safetensors"),
        ({"codec": "int3"}, "CODEC"),
        ({"images": Path("/nowhere")}, "nowhere"),
        ({"sam3": Path("/nowhere.pt")}, "nowhere.pt"),
    ],
)
def test_what_cannot_work_is_refused(request_for: DistillRequest, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_configs(request_for.model_copy(update=changes), "images", annotated=False)


def test_a_training_that_has_begun_needs_no_weights_to_start_from(request_for: DistillRequest) -> None:
    request_for.student_dir.mkdir(parents=True)
    (request_for.student_dir / "ckpt_step_3.pth").touch()
    write_configs(request_for.model_copy(update={"pretrained": "true"}), "images", annotated=False)


def test_an_empty_folder_is_refused(request_for: DistillRequest, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no images"):
        write_configs(request_for.model_copy(update={"images": tmp_path / "empty"}), "images", annotated=False)
