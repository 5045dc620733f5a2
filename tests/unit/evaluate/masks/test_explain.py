"""The distance to the teacher, with models whose gap is known to lie in one part, and real decoders."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from efficientsam3.cli import main
from efficientsam3.data.preprocess import Preprocessing
from efficientsam3.evaluate.masks.explain import Explanation, conclusions, explain
from efficientsam3.evaluate.masks.ground_truth import GroundTruth, Selection, open_ground_truth
from efficientsam3.evaluate.masks.measure import measure
from efficientsam3.evaluate.masks.mixtures import Pair
from efficientsam3.evaluate.masks.parts import BANDS, Statistics, bands, regions
from efficientsam3.evaluate.masks.segmenters import EncoderWithDecoder
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.decoders import Answer
from efficientsam3.sam3.geometry import Placement
from efficientsam3.sam3.prompts import ObjectPrompt
from efficientsam3.testing.tiny_sam3 import write_tiny_sam3

GRID, CHANNELS = 16, 8
PREPROCESSING = Preprocessing(image_size=64, resize="square")


class Encoder:
    """Gives an image the embedding that a function makes of its true masks (H, W), joined."""

    preprocessing = PREPROCESSING

    def __init__(self, embed: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._embed = embed

    def embed(self, image_id: str, pixels: torch.Tensor) -> torch.Tensor:
        cells = torch.nn.functional.interpolate(pixels[None, :1].float(), (GRID, GRID), mode="area")[0, 0]
        return self._embed(torch.where(cells > 127, 1.0, -1.0))[None]

    def has(self, image_id: str) -> bool:
        return True


class Decoder:
    """Its levels are multiples of channels 0 and 1; where those of one level are positive in the mean is the mask."""

    embed_dim, embed_size, preprocessing = CHANNELS, GRID, PREPROCESSING

    def __init__(self, levels: int = 1, reads: int = 0, neck: float = 1.0) -> None:
        self._levels, self._reads, self._neck = levels, reads, neck

    def features(self, embedding: torch.Tensor) -> list[torch.Tensor]:
        return [
            torch.nn.functional.interpolate(self._neck * embedding[:, :2], scale_factor=2 ** (self._levels - place - 1))
            for place in range(self._levels)
        ]

    def decode(self, features: list[torch.Tensor], placement: Placement) -> Callable[[ObjectPrompt], Answer]:
        level = features[self._reads].mean(1, keepdim=True)
        mask = torch.nn.functional.interpolate(level, placement.size)[0] > 0
        return lambda prompt: Answer(mask, torch.ones(1))

    def open(self, embedding: torch.Tensor, placement: Placement) -> Callable[[ObjectPrompt], Answer]:
        return self.decode(self.features(embedding), placement)


@pytest.fixture
def truth(tmp_path: Path, write_sa1b) -> GroundTruth:
    """Two images of 64 x 64 that are white where their one object is."""
    from PIL import Image

    masks = np.zeros((2, 64, 64), dtype=bool)
    masks[0, 8:40, 16:56] = masks[1, 24:64, 8:32] = True
    root = write_sa1b(tmp_path / "data", {"one": [masks[0]], "two": [masks[1]]})
    for name, mask in zip(("one", "two"), masks, strict=True):
        Image.fromarray(np.repeat(mask[..., None], 3, 2).astype(np.uint8) * 255).save(
            root / "images/val" / f"{name}.jpg", quality=95
        )
    return open_ground_truth(root)


def right(mask: torch.Tensor) -> torch.Tensor:
    """The teacher's embedding: the mask in channels 0 and 1, noise elsewhere."""
    noise = torch.randn(CHANNELS, GRID, GRID, generator=torch.Generator().manual_seed(0))
    noise[:2] = mask
    return noise


def explained(
    truth: GroundTruth,
    wrong: Callable[[torch.Tensor], torch.Tensor],
    teacher: Decoder | None = None,
    student: Decoder | None = None,
) -> dict[tuple[str, str], float]:
    """What each part carries of the gap of a student with the embedding `wrong`."""
    models = [
        EncoderWithDecoder("teacher", Encoder(right), teacher or Decoder()),
        EncoderWithDecoder("student", Encoder(wrong), student or teacher or Decoder()),
    ]
    scores = measure(models, truth, ["box"], Selection()).scores
    found = explain(Pair(*models, truth), truth, ["box"], Selection(), scores)
    check(found)
    return {(part.family, part.part): round(part.share or 0, 6) for part in found.parts}


def check(found: Explanation) -> None:
    (gap,) = found.gaps
    assert gap.teacher == 1 > gap.student
    for part in found.parts:
        carried = (part.repaired - gap.student + gap.teacher - part.damaged) / 2 / (gap.teacher - gap.student)
        assert part.share == pytest.approx(carried)
        assert part.interval is not None
    for family in ("channels by error", "regions", "spatial frequency"):
        errors = [part.error for part in found.parts if part.family == family]
        assert set(errors) == {None} or sum(error or 0 for error in errors) == pytest.approx(1)
    assert sorted(channel for group in found.channel_groups for channel in group) == list(range(CHANNELS))


def of(family: str, found: dict[tuple[str, str], float]) -> dict[str, float]:
    return {part: share for (name, part), share in found.items() if name == family}


def test_the_group_of_channels_that_carries_the_gap_is_named_even_where_another_is_more_wrong(truth) -> None:
    def wrong(mask: torch.Tensor) -> torch.Tensor:
        embedding = right(mask)
        embedding[:2] = -1.5 * mask  # what the decoder reads
        embedding[4:6] += 30 * torch.randn(2, GRID, GRID, generator=torch.Generator().manual_seed(1))
        embedding[6:] += 0.1
        return embedding

    found = explained(truth, wrong)
    assert of("channels by error", found) == {
        "2 channels, largest": 0,
        "2 channels, 2 of 4": 1,
        "2 channels, 3 of 4": 0,
        "2 channels, smallest": 0,
    }
    assert not of("levels of the neck", found)
    assert not of("trunk and neck", found), "one decoder for both"


def test_the_region_and_the_band_that_carry_the_gap_are_named(truth) -> None:
    def spots(mask: torch.Tensor) -> torch.Tensor:
        """A chessboard of errors in the background, far from objects."""
        embedding = right(mask)
        far = torch.nn.functional.max_pool2d(mask[None], 5, 1, 2)[0] < 0
        board = (torch.arange(GRID)[:, None] + torch.arange(GRID)) % 2 == 0
        embedding[:2, far & board] = 3.0
        return embedding

    found = explained(truth, spots)
    where = of("regions", found)
    assert where["background"] == 1
    assert where["outlines of objects"] == where["inside of objects"] == 0
    assert "padding" not in where, "squashed images have none"

    def shifted(mask: torch.Tensor) -> torch.Tensor:
        """Everything too low, and differently scaled: a matter of the mean alone, the coarsest frequency."""
        embedding = right(mask)
        embedding[:2] = 0.5 * embedding[:2] - 0.75
        return embedding

    found = explained(truth, shifted)
    assert found["mean and scale", "of each channel"] == 1
    frequencies = of("spatial frequency", found)
    assert max(frequencies, key=lambda band: frequencies[band]) == next(iter(BANDS))


@pytest.mark.parametrize("reads", [0, 1, 2])
def test_the_level_of_the_neck_that_is_read_carries_the_gap(truth, reads: int) -> None:
    found = explained(truth, lambda mask: -right(mask), Decoder(3, reads))
    levels = of("levels of the neck", found)
    assert list(levels) == ["64 x 64 cells", "32 x 32 cells", "16 x 16 cells"]
    assert list(levels.values()) == [float(place == reads) for place in range(3)]


def test_trunk_and_neck_are_told_apart(truth) -> None:
    assert of("trunk and neck", explained(truth, right, Decoder(), Decoder(neck=-1.0))) == {"trunk": 0, "neck": 1}
    doubled = explained(truth, lambda mask: -right(mask), Decoder(), Decoder(neck=2.0))
    assert of("trunk and neck", doubled) == {"trunk": 1, "neck": 0}


def test_parts_add_up_to_everything() -> None:
    generator = torch.Generator().manual_seed(0)
    difference = torch.randn(1, 3, 12, 12, generator=generator)
    split = bands(difference, (12, 9))
    total = sum(split.values(), torch.zeros(()))
    assert torch.allclose(total[..., :9], difference[..., :9], atol=1e-5)
    assert (total[..., 9:] == 0).all()
    waves = torch.cos(torch.pi * (torch.arange(32) + 0.5) * 2 / 32).expand(1, 1, 32, 32)  # one wave over 32 cells
    assert torch.allclose(bands(waves, (32, 32))[next(iter(BANDS))], waves, atol=1e-5)
    fine = (torch.arange(32) % 2 * 2.0 - 1).expand(1, 1, 32, 32)
    assert bands(fine, (32, 32))[list(BANDS)[2]].norm() > 0.8 * fine.norm()
    mask = np.zeros((48, 36), dtype=bool)
    mask[8:32, 4:28] = True
    cells = regions([mask], (12, 9), 12)
    assert torch.equal(torch.stack(list(cells.values())).sum(0), torch.ones(12, 12, dtype=torch.long))
    assert [int(part.sum()) for part in cells.values()] == [24 + 20 + 12, 4, 12 * 9 - 60, 3 * 12]  # 6 x 6 cells


def test_statistics_are_of_all_images_and_rescaling_is_undone() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 5, 40, generator=generator)
    student = 3 * student + 1
    statistics = Statistics.of([(teacher[:, :15], student[:, :15]), (teacher[:, 15:], student[:, 15:])])
    assert torch.allclose(statistics.student_std.float(), student.std(1, correction=0), atol=1e-5)
    assert torch.allclose(statistics.teacher_mean.float(), teacher.mean(1), atol=1e-5)
    error = ((teacher - student) ** 2).mean(1) / teacher.var(1, correction=0)
    assert torch.allclose(statistics.error.float(), error, rtol=1e-4)
    assert [len(group) for group in statistics.channel_groups(2)] == [3, 2]
    assert statistics.channel_groups(5)[0] == [int(error.argmax())]
    grid = student.reshape(1, 5, 8, 5)
    moved = statistics.rescale(grid, to_teacher=True)
    assert torch.allclose(moved.mean((0, 2, 3)), teacher.mean(1), atol=1e-5)
    assert torch.allclose(statistics.rescale(moved, to_teacher=False), grid, atol=1e-4)


def test_no_gap_is_said_so(truth) -> None:
    models = [EncoderWithDecoder(name, Encoder(right), Decoder()) for name in ("teacher", "student")]
    scores = measure(models, truth, ["box"], Selection()).scores
    found = explain(Pair(*models, truth), truth, ["box"], Selection(), scores)
    assert {part.share for part in found.parts} == {None}
    assert conclusions(found) == ["By box, student has 1.000 where teacher has 1.000: there is no gap to explain."]


def test_what_cannot_be_taken_apart_is_refused(truth) -> None:
    models = [EncoderWithDecoder(name, Encoder(right), Decoder()) for name in ("teacher", "student")]
    models[1].preprocessing = Preprocessing(image_size=64, resize="pad")
    with pytest.raises(UserError, match="images are 64 pixels by square, and student, whose are 64 by pad"):
        Pair(*models, truth)
    models[1] = EncoderWithDecoder("student", Encoder(lambda mask: right(mask)[:4]), Decoder())
    with pytest.raises(UserError, match="embeddings of 8 x 16 x 16 and 4 x 16 x 16"):
        Pair(*models, truth).scene("one")
    models[1] = EncoderWithDecoder("student", Encoder(right), Decoder(3))
    pair = Pair(*models, truth)
    with pytest.raises(UserError, match="whose decoders are of different kinds"):
        pair.parts(Statistics.of(pair.cells(["one"])), [[0]], "one")


def test_the_command_explains_students_of_sam3_and_of_sam(
    tmp_path: Path, write_sa1b, two_images, write_store, box_decoder, student_path, tiny_sam3_path, capsys
) -> None:
    data = write_sa1b(tmp_path / "sa1b", two_images)
    store = write_store(tmp_path / "store", ["sa_1", "sa_2"])
    out = tmp_path / "out"
    common = ["--data", str(data), "--prompt", "box", "--out", str(out), "--device", "cpu", "--explain"]
    common += ["--max-images", "1", "--max-objects", "1"]
    models = [f"teacher={store}", f"student={student_path}", "zeros"]
    assert main(["evaluate", *models, "--decoder", str(box_decoder), *common]) == 0
    assert "there is no gap to explain" in capsys.readouterr().out, "this decoder does not look at embeddings"
    large = write_store(tmp_path / "large", ["sa_1", "sa_2"], shape=(64, 16, 224))
    # The whole SAM3 as the student of a store of noise.
    models = [f"noise={large}", f"sam3={tiny_sam3_path}"]
    assert main(["evaluate", *models, "--decoder", str(tiny_sam3_path), *common]) == 0
    explanation = json.loads((out / "results.json").read_text())["explanation"]
    families = {part["family"] for part in explanation["parts"]}
    assert families == {
        "levels of the neck", "channels by error", "mean and scale", "spatial frequency", "regions"
    }  # fmt: skip
    assert "<h2>What carries the gap</h2>" in (out / "report.html").read_text()
    write_tiny_sam3(tmp_path / "other.pt", seed=1)
    models = [f"sam3={tiny_sam3_path}", f"other={tmp_path / 'other.pt'}"]
    assert main(["evaluate", *models, *common]) == 0
    parts = json.loads((out / "results.json").read_text())["explanation"]["parts"]
    assert [part["part"] for part in parts if part["family"] == "trunk and neck"] == ["trunk", "neck"]
    assert main(["evaluate", "zeros", "--decoder", str(box_decoder), *common]) == 2
    assert "--explain needs a student beside its teacher" in capsys.readouterr().err
