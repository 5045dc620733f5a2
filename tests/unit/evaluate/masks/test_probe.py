from pathlib import Path

import pytest
import torch

from efficientsam3.evaluate.masks.encoders import StoreEncoder
from efficientsam3.evaluate.masks.ground_truth import Selection, open_ground_truth
from efficientsam3.evaluate.masks.probe import MaskProbe
from efficientsam3.models.student_files import load_trained_student
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.decoders import load_decoder
from efficientsam3.store.reader import EmbeddingStore

CPU = torch.device("cpu")


def build_probe(decoder: Path, store: EmbeddingStore, data: Path) -> MaskProbe:
    """A probe of two images, two objects each."""
    selection = Selection(max_images=2, max_objects=2)
    return MaskProbe(load_decoder(decoder, CPU), StoreEncoder(store), open_ground_truth(data), selection)


def test_a_student_is_probed_and_left_as_it_was(
    tmp_path: Path, write_sa1b, two_images, write_store, box_decoder, student_path, monkeypatch
) -> None:
    data = write_sa1b(tmp_path / "sa1b", two_images)
    store = EmbeddingStore(write_store(tmp_path / "store", ["sa_1", "sa_2"]))
    probe = build_probe(box_decoder, store, data)
    student = load_trained_student(student_path).train()
    first = probe(student)
    assert next(iter(first)) == "box_miou"  # the one that picks the best checkpoint
    assert first.keys() == {
        f"{start}{prompt}_{end}"
        for prompt in ("box", "point")
        for start, end in (("", "miou"), ("", "agreement"), ("teacher_", "miou"))
    }
    assert student.training
    assert first["box_miou"] > 0.9
    assert first["box_agreement"] == 1  # this decoder does not look at embeddings
    reads = []
    monkeypatch.setattr(EmbeddingStore, "read", lambda *_: reads.append(1))
    assert probe(student) == first
    assert not reads, "the teacher's masks are computed once"


def test_the_student_s_embedding_is_what_is_decoded(
    tmp_path: Path, photographs_path: Path, tiny_sam3_path: Path, write_store
) -> None:
    """With SAM3's own decoder: the teacher's own embeddings agree with themselves, others do not."""
    store = EmbeddingStore(write_store(tmp_path / "store", ["sa_7", "sa_9"], shape=(64, 16, 224)))
    probe = build_probe(tiny_sam3_path, store, photographs_path)

    class Stored(torch.nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(scale))
            self.rows = iter([0, 1])

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.scale * store.decode(store.read(next(self.rows))[None])[1]

    chosen = probe(Stored(1.0))
    assert chosen["box_agreement"] == chosen["point_agreement"] == 1
    assert chosen["box_miou"] == chosen["teacher_box_miou"]
    assert probe(Stored(-1.0))["box_agreement"] < 0.9


def test_probes_that_could_not_work_are_refused_before_training(
    tmp_path: Path, write_sa1b, two_images, write_store, box_decoder
) -> None:
    data = write_sa1b(tmp_path / "sa1b", two_images)
    other = EmbeddingStore(write_store(tmp_path / "other", ["sa_9"]))
    with pytest.raises(UserError, match="none of the annotated val images"):
        build_probe(box_decoder, other, data)
    with pytest.raises(UserError, match="Mask decoder"):
        build_probe(tmp_path / "none.onnx", other, data)
