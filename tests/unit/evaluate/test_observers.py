import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from efficientsam3.config.load import load_config
from efficientsam3.config.schema import TrainConfig
from efficientsam3.evaluate.observers import build_probe, training_observers
from efficientsam3.models.teacher import Teacher, build_teacher, inspect_teacher
from efficientsam3.runtime.distributed import Process
from efficientsam3.runtime.errors import UserError
from efficientsam3.store.reader import EmbeddingStore
from efficientsam3.train.plan import ProbePlan, plan_training
from efficientsam3.train.targets import StoredTargets

CPU = torch.device("cpu")
OFF = ("PROBE.DECODER", "null", "PROBE.IMAGES", "32", "PROBE.OBJECTS", "4")


@pytest.fixture
def configure(
    tmp_path: Path, repository: Path, photographs_path: Path, tiny_sam3_path: Path, store_path: Path, tiny_opts
):
    """Builds a training's configuration, probed by the small SAM3."""

    def make(*opts: str) -> TrainConfig:
        probe = ["PROBE.DECODER", str(tiny_sam3_path), "PROBE.IMAGES", "2", "PROBE.OBJECTS", "1"]
        store = [] if "DISTILL.ONLINE" in opts else ["DISTILL.TEACHER_EMBED_PATH", str(store_path / "embeddings")]
        opts = (*store, *opts)
        given = {"DATA.DATA_PATH": photographs_path, "OUTPUT": tmp_path / "out"}
        return load_config(TrainConfig, repository / "stage1/configs/es_ev_s.yaml", [*tiny_opts, *probe, *opts], given)

    return make


class Perfect(torch.nn.Module):
    """A student that is the teacher."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))
        spec = inspect_teacher(path)
        assert spec.preprocessing is not None
        self._teacher = build_teacher(spec, spec.preprocessing, CPU)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._teacher(pixels)


def test_with_the_teacher_in_the_loop_the_probe_asks_it(
    configure, one_process: Process, tiny_sam3_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_training(configure("DISTILL.ONLINE", "true", "TEACHER.RESUME", str(tiny_sam3_path)))
    loaded: list[weakref.ref[Teacher]] = []

    def build(*args: Any) -> Teacher:
        teacher = build_teacher(*args)
        loaded.append(weakref.ref(teacher))
        return teacher

    monkeypatch.setattr("efficientsam3.embed.batches.build_teacher", build)
    probe = training_observers(plan, CPU).probe
    assert probe is not None
    assert not loaded, "nothing is computed before the first epoch has ended"
    student = Perfect(tiny_sam3_path)
    with plan.targets.open(one_process):
        first = probe(student)
        assert first["box_agreement"] == first["point_agreement"] == 1
        assert first["box_miou"] == first["teacher_box_miou"] > 0
        assert probe(student) == first
    assert len(loaded) == 1, "the training's own teacher answers"
    gc.collect()
    assert [teacher() for teacher in loaded] == [None], "it is let go with the targets"


def test_a_probe_that_does_not_fit_is_refused_before_training(
    configure, write_store, photographs_path: Path, tiny_sam3_path: Path, tmp_path: Path
) -> None:
    small = StoredTargets(EmbeddingStore(write_store(tmp_path / "small", ["sa_7"])))
    probe = ProbePlan(tiny_sam3_path, photographs_path, images=2, objects=1)
    with pytest.raises(UserError, match="8 channels on 4x4 cells at 64 pixels, the decoder takes 64 on 16x16 at 224"):
        build_probe(probe, small, 0, CPU)
    with pytest.raises(UserError, match="is not a file"):
        training_observers(plan_training(configure("PROBE.DECODER", "nowhere.onnx")), CPU)


def test_without_a_decoder_nothing_is_probed(configure) -> None:
    assert training_observers(plan_training(configure(*OFF)), CPU).probe is None
