"""Layer-wise learning rates."""

from collections.abc import Callable

import pytest

from efficientsam3.checkpoints.training import load_training_checkpoint
from efficientsam3.config.schema import TrainConfig
from efficientsam3.models.student import Student, StudentArchitecture
from efficientsam3.runtime.distributed import Process
from efficientsam3.runtime.errors import UserError
from efficientsam3.train.optimizer import build_optimizer
from efficientsam3.train.run import train
from unit.train.record_training import StopAfter

MakeTraining = Callable[..., TrainConfig]


def test_rates_fall_from_stage_to_stage() -> None:
    student = Student(StudentArchitecture("efficientvit_b0", 64, 16, 224, "fpn"))
    groups = build_optimizer(student, 0.1, 0.5, layer_decay=0.5).param_groups
    scales = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    named = dict(student.named_parameters())
    assert scales.keys() == {id(parameter) for parameter in named.values()}
    assert all(decays[id(each)] == (0.5 if each.ndim >= 2 else 0) for each in named.values())
    exponents = {"head.": 0, "backbone.stages_3.": 1, "backbone.stages_2.": 2, "backbone.stages_1.": 3}
    exponents |= {"backbone.stages_0.": 4, "backbone.stem_res0.": 5, "backbone.stem_in_conv.": 6}
    for name, parameter in named.items():
        [exponent] = [number for start, number in exponents.items() if name.startswith(start)]
        assert scales[id(parameter)] == pytest.approx(0.5**exponent), name


@pytest.mark.parametrize(
    ("backbone", "stages"),
    [("timm/vit_tiny_patch16_224", 12), ("timm/resnet18", 4), ("repvit_m0_9", 4), ("tiny_vit_5m", 4)],
)
def test_any_backbone_has_stages(backbone: str, stages: int) -> None:
    student = Student(StudentArchitecture(backbone, 64, 16, 224))
    stage_of = student.group_matcher()
    names = [name for name, _ in student.named_parameters()]
    numbers = [stage_of(name) for name in names]
    assert numbers == sorted(numbers)
    assert stages < len(set(numbers)) <= stages + 3, "those, what comes before, and the head"
    assert {stage_of(name) for name in names if name.startswith("head.")} == {max(numbers)}


def test_a_resumed_training_keeps_its_rates_or_takes_the_new_ones(
    make_training: MakeTraining, one_process: Process
) -> None:
    few = ("MODEL.HEAD", "fpn", "TRAIN.EPOCHS", "2", "TRAIN.LR_SCALING", "none")
    decayed = (*few, "TRAIN.LAYER_DECAY", "0.5")
    undisturbed = train(make_training(*decayed, "TAG", "undisturbed"), one_process)
    train(make_training(*decayed), one_process, StopAfter(4))
    summary = train(make_training(*decayed), one_process)
    assert summary.metrics == undisturbed.metrics
    content = load_training_checkpoint(summary.checkpoint)
    rates = [group["lr"] / group["lr_scale"] for group in content["optimizer"]["param_groups"]]
    assert rates == pytest.approx([rates[0]] * len(rates))
    assert {group["lr_scale"] for group in content["optimizer"]["param_groups"]} == {0.5**n for n in range(7)}

    more = (*few, "TRAIN.EPOCHS", "3", "TRAIN.LAYER_DECAY")
    with pytest.raises(UserError, match=r"TRAIN\.LAYER_DECAY: 0\.5 -> 0\.25"):
        train(make_training(*more, "0.25"), one_process)
    summary = train(make_training(*more, "0.25"), one_process, allow_config_change=True)
    groups = load_training_checkpoint(summary.checkpoint)["optimizer"]["param_groups"]
    assert {group["lr_scale"] for group in groups} == {0.25**n for n in range(7)}
    with pytest.raises(UserError, match=r"cannot be continued from.*parameter groups"):
        train(make_training(*more, "1", "TRAIN.EPOCHS", "4"), one_process, allow_config_change=True)


def test_one_rate_for_all_is_recorded_as_before_there_was_a_choice(
    make_training: MakeTraining, one_process: Process
) -> None:
    content = load_training_checkpoint(train(make_training("TRAIN.EPOCHS", "1"), one_process).checkpoint)
    assert "LAYER_DECAY" not in content["config"]["TRAIN"]
    assert len(content["optimizer"]["param_groups"]) == 2
    with pytest.raises(ValueError, match=r"LAYER_DECAY"):
        make_training("TRAIN.LAYER_DECAY", "1.5")
