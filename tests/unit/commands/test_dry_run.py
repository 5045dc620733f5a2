"""What the launchers ask one process, before they start several."""

from pathlib import Path

import pytest
import torch

from efficientsam3.cli import main
from efficientsam3.config.schema import ExportConfig, TrainConfig
from tiny import TINY_OPTS
from unit.conftest import CONFIGS, MakeExport, MakeTraining


@pytest.mark.parametrize("processes", [1, 2])
def test_several_processes_on_mps_are_refused_before_any_is_started(
    make_training: MakeTraining,
    make_export: MakeExport,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    processes: int,
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    training, embedding = make_training(), make_export(output=tmp_path / "new")
    for command, config, file, more in (
        ("train", training, "es_ev_s.yaml", ["DISTILL.TEACHER_EMBED_PATH", str(training.DISTILL.TEACHER_EMBED_PATH)]),
        ("embed", embedding, "teacher/sam_vit_huge_sa1b.yaml", ["MODEL.RESUME", str(embedding.MODEL.RESUME)]),
    ):
        paths = ["--data-path", str(_data(config)), "--output", str(tmp_path / "new"), "--dry-run", str(processes)]
        options = ["--opts", *TINY_OPTS, *more, "DEVICE", "mps"]
        if command == "train":
            options += ["MODEL.PRETRAINED", "false"]
        code = main([command, "--cfg", str(CONFIGS / file), *paths, *options])
        said = capsys.readouterr().err
        assert code == (0 if processes == 1 else 2), said
        assert ("PyTorch joins no processes on MPS" in said) is (processes == 2)


def _data(config: TrainConfig | ExportConfig) -> Path:
    assert config.DATA.DATA_PATH is not None
    return config.DATA.DATA_PATH
