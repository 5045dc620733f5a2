"""Settings that would have no effect are refused, unless they say what is the default anyway."""

from pathlib import Path

import pytest

from efficientsam3.config.load import load_config
from efficientsam3.config.schema import TrainConfig
from efficientsam3.runtime.errors import UserError


@pytest.mark.parametrize(
    ("opts", "named"),
    [
        (["TEACHER.RESUME", "other.pt"], r"TEACHER has no effect without DISTILL\.ONLINE"),
        (["DISTILL.ONLINE_CACHE", "cache"], r"DISTILL\.ONLINE_CACHE cache has no effect without DISTILL\.ONLINE"),
        (["DISTILL.AUGMENT.HFLIP", "0.5"], r"DISTILL\.AUGMENT has no effect without DISTILL\.ONLINE"),
        (["DISTILL.ONLINE", "true", "DISTILL.READ_WINDOW", "8"], r"DISTILL\.READ_WINDOW 8 has no effect without"),
        (["DISTILL.ONLINE", "true", "DISTILL.TEACHER_EMBED_PATH", "store"], r"TEACHER_EMBED_PATH store has no effect"),
        (
            ["PROBE.IMAGES", "8"],
            r"IMAGES 8 has no effect without PROBE\.DECODER: set that, or leave PROBE\.IMAGES out",
        ),
        (["DISTILL.MASKS.ROUNDS", "3"], r"DISTILL\.MASKS\.ROUNDS 3 has no effect without DISTILL\.MASKS\.DECODER"),
    ],
)
def test_settings_without_effect_are_refused(repository: Path, opts: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        load_config(TrainConfig, repository / "stage1/configs/es_ev_s.yaml", opts)


def test_defaults_may_be_written_down(repository: Path) -> None:
    opts = ["PROBE.IMAGES", "32", "TRAIN.KEEP_STEPS", "3", "TEACHER.NAME", "sam3", "DISTILL.ONLINE", "true"]
    config = load_config(TrainConfig, repository / "stage1/configs/es_ev_s.yaml", opts)
    assert config.DISTILL.ONLINE  # though the file names the default store
