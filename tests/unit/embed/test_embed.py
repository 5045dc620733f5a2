import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from efficientsam3.config.schema import ExportConfig
from efficientsam3.data.augment import augmentation_seed
from efficientsam3.data.images import read_rgb
from efficientsam3.data.preprocess import normalise, resize_image
from efficientsam3.embed.plan import plan_embedding
from efficientsam3.embed.run import embed_dataset
from efficientsam3.embed.verify import check_saved_embeddings
from efficientsam3.models.teacher import Sam3Teacher, build_teacher, inspect_teacher
from efficientsam3.runtime.distributed import Process
from efficientsam3.runtime.errors import UserError
from efficientsam3.store.gather import compute_statistics
from efficientsam3.store.reader import EmbeddingStore
from efficientsam3.store.shards import Shard
from efficientsam3.store.statistics import gathered_statistics, store_statistics

MakeExport = Callable[..., ExportConfig]


def read_all(output: Path) -> dict[str, bytes]:
    store = EmbeddingStore(output / "embeddings")
    return {store.ids[row].decode(): store.read(row).numpy().tobytes() for row in range(len(store))}


def test_records_hold_the_seed_and_the_teachers_embedding(
    store_path: Path, tiny_sam3_path: Path, photographs_path: Path
) -> None:
    store = EmbeddingStore(store_path / "embeddings")
    assert sorted(store.ids) == [f"sa_{number}".encode() for number in range(1, 10)]
    preprocessing = store.manifest.preprocessing
    teacher = build_teacher(inspect_teacher(tiny_sam3_path), preprocessing, torch.device("cpu"))
    for split, image_id in (("train", "sa_2"), ("val", "sa_8")):
        pixels, size = resize_image(read_rgb(photographs_path / "images" / split / f"{image_id}.jpg"), preprocessing)
        embedding = teacher(normalise(pixels[None], torch.tensor([size]), preprocessing))
        seeds, stored = store.decode(store.read(int(store.rows(np.array([image_id.encode()]))[0]))[None])
        assert seeds.tolist() == [augmentation_seed(0, image_id)]
        torch.testing.assert_close(stored, embedding, rtol=2e-3, atol=2e-3)


def test_the_files_are_the_documented_ones(store_path: Path) -> None:
    size = 4 + 2 * 64 * 16 * 16
    values = (store_path / "embeddings" / "rank0-values.bin").read_bytes()
    keys = (store_path / "embeddings" / "rank0-keys.txt").read_text().splitlines()
    assert len(values) == size * len(keys)
    first = np.frombuffer(values[:4], "<i4")[0]
    assert first == augmentation_seed(0, keys[0])


def test_only_what_is_missing_is_embedded(
    make_export: MakeExport, one_process: Process, store_path: Path, tmp_path: Path
) -> None:
    part = embed_dataset(plan_embedding(make_export("DATA.NUM_SAMPLES", "2")), one_process)
    assert (part.embedded, part.present) == (4, 0)
    before = read_all(tmp_path / "teacher")
    rest = embed_dataset(plan_embedding(make_export()), one_process)
    assert (rest.embedded, rest.present) == (5, 4)
    assert before.items() <= read_all(tmp_path / "teacher").items()
    assert read_all(tmp_path / "teacher").keys() == read_all(store_path).keys()
    again = embed_dataset(plan_embedding(make_export()), one_process)
    assert (again.embedded, again.present) == (0, 9)


def test_a_broken_image_is_reported_and_skipped_and_embedded_once_it_is_whole(
    make_export: MakeExport, one_process: Process, photographs_path: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(photographs_path, data)
    broken = data / "images" / "train" / "sa_3.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    summary = embed_dataset(plan_embedding(make_export(data=data)), one_process)
    assert summary.embedded == 8
    assert [str(broken) in sentence for sentence in summary.broken] == [True]
    assert str(broken) in (tmp_path / "teacher" / "broken_images.txt").read_text()
    assert "sa_3" not in read_all(tmp_path / "teacher")
    broken.write_bytes(whole)
    assert embed_dataset(plan_embedding(make_export(data=data)), one_process).embedded == 1


def test_other_settings_cannot_be_mixed_in(make_export: MakeExport, one_process: Process) -> None:
    embed_dataset(plan_embedding(make_export("DATA.NUM_SAMPLES", "1")), one_process)
    with pytest.raises(UserError, match="other settings"):
        embed_dataset(plan_embedding(make_export("SEED", "1")), one_process)


def test_an_embedding_that_is_not_finite_stops_the_run_with_the_images_name(
    make_export: MakeExport, one_process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    beyond_float16 = torch.full((64, 16, 16), 7e4)
    monkeypatch.setattr(Sam3Teacher, "__call__", lambda _, pixels: beyond_float16.expand(len(pixels), -1, -1, -1))
    with pytest.raises(UserError, match=r"image 'sa_1' is not finite"):
        embed_dataset(plan_embedding(make_export()), one_process)


def test_a_compiled_teacher_continues_a_store_and_its_records_agree_with_the_plain_one(
    make_export: MakeExport, one_process: Process, store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, embed, sizes = list[str](), Sam3Teacher._embed, list[int]()
    monkeypatch.setattr("efficientsam3.models.teacher.compile_trunk", lambda trunk, backend: made.append(backend))

    def spy(teacher: Sam3Teacher, pixels: torch.Tensor) -> torch.Tensor:
        sizes.append(len(pixels))
        return embed(teacher, pixels)

    monkeypatch.setattr(Sam3Teacher, "_embed", spy)
    embed_dataset(plan_embedding(make_export("DATA.NUM_SAMPLES", "1")), one_process)
    assert (made, sizes) == ([], [1, 1])
    compiled = make_export("MODEL.COMPILE", "true", "DATA.BATCH_SIZE", "4")
    assert embed_dataset(plan_embedding(compiled), one_process).embedded == 7
    # Three batches, the first of them twice more, to compare.
    assert (made, sizes) == (["inductor"], [1, 1, *[4] * 5])
    assert check_saved_embeddings(plan_embedding(make_export()), one_process).images == 9
    stores = [EmbeddingStore(path / "embeddings") for path in (tmp_path / "teacher", store_path)]
    assert stores[0].manifest == stores[1].manifest


def test_a_teacher_that_cannot_be_compiled_is_refused_before_anything_is_written(
    make_export: MakeExport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sam3Teacher, "compiles", False)
    with pytest.raises(UserError, match="--compile-teacher"):
        plan_embedding(make_export("MODEL.COMPILE", "true"))
    assert not (tmp_path / "teacher").exists()


def test_augmentation_reaches_the_teacher(
    make_export: MakeExport, one_process: Process, store_path: Path, tmp_path: Path
) -> None:
    embed_dataset(plan_embedding(make_export("DATA.AUGMENT.HFLIP", "1.0")), one_process)
    flipped, plain = read_all(tmp_path / "teacher"), read_all(store_path)
    assert all(flipped[key][:4] == plain[key][:4] and flipped[key][4:] != plain[key][4:] for key in plain)
    assert EmbeddingStore(tmp_path / "teacher" / "embeddings").manifest.augmentation.hflip == 1.0


def test_a_worker_whose_launcher_died_stops_before_its_next_record(
    make_export: MakeExport, one_process: Process, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="launcher"):
        embed_dataset(plan_embedding(make_export()), replace(one_process, launcher=2**22))
    assert read_all(tmp_path / "teacher") == {}


@pytest.mark.parametrize(
    ("opts", "named"),
    [
        (["DATA.IMG_SIZE", "1008"], "takes 224 only"),
        (["DISTILL.EMBED_DIM", "1024"], "64 channels"),
        (["DATA.DATA_PATH", "absent"], "absent"),
        (["MODEL.RESUME", "absent.pt"], r"absent\.pt does not exist"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    make_export: MakeExport, tmp_path: Path, opts: list[str], named: str
) -> None:
    config = make_export(*opts)
    data = config.DATA
    if "DATA.DATA_PATH" in opts:
        data = data.model_copy(update={"DATA_PATH": tmp_path / "absent"})
    model = (
        config.MODEL.model_copy(update={"RESUME": tmp_path / "absent.pt"}) if "MODEL.RESUME" in opts else config.MODEL
    )
    with pytest.raises(UserError, match=named):
        plan_embedding(config.model_copy(update={"DATA": data, "MODEL": model}))
    assert not (tmp_path / "teacher").exists()


def test_an_empty_dataset_is_an_error_and_an_empty_split_is_not(
    make_export: MakeExport, one_process: Process, photographs_path: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    (data / "images" / "train").mkdir(parents=True)
    (data / "images" / "val").mkdir()
    with pytest.raises(UserError, match="no images in train or val"):
        plan_embedding(make_export(data=data))
    shutil.copy(photographs_path / "images" / "val" / "sa_8.jpg", data / "images" / "val")
    assert embed_dataset(plan_embedding(make_export(data=data)), one_process).embedded == 1


def test_the_same_id_in_both_splits_is_refused_naming_both_files(
    make_export: MakeExport, photographs_path: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(photographs_path, data)
    shutil.copy(data / "images" / "val" / "sa_8.jpg", data / "images" / "train" / "sa_8.jpg")
    with pytest.raises(UserError, match=r"train/sa_8\.jpg.*val/sa_8\.jpg"):
        plan_embedding(make_export(data=data))


@pytest.mark.parametrize(
    ("codec", "least"), [("int8", 0.999), ("int4", 0.98), ("pca48-int8", 0.98), ("pca60-int4", 0.98)]
)
def test_a_codec_is_recorded_checked_and_near_the_teacher(
    make_export: MakeExport, one_process: Process, store_path: Path, tmp_path: Path, codec: str, least: float
) -> None:
    config = make_export("DISTILL.CODEC", codec)
    embed_dataset(plan_embedding(config), one_process)
    store, plain = EmbeddingStore(tmp_path / "teacher" / "embeddings"), EmbeddingStore(store_path / "embeddings")
    assert store.manifest.codec == codec
    assert (store.manifest.projection is not None) == codec.startswith("pca")
    rows = torch.stack([store.read(row) for row in range(9)]), torch.stack([plain.read(row) for row in range(9)])
    (seeds, stored), (plain_seeds, exact) = store.decode(rows[0]), plain.decode(rows[1])
    assert torch.equal(seeds, plain_seeds)
    assert rows[0].shape[1] < rows[1].shape[1] / 1.9
    assert float(torch.nn.functional.cosine_similarity(stored, exact, dim=1).mean()) > least
    agreement = check_saved_embeddings(plan_embedding(config), one_process)
    assert agreement.images == 9
    with pytest.raises(UserError, match="other settings .codec"):
        embed_dataset(plan_embedding(make_export()), one_process)


def test_a_projection_is_fitted_once_and_kept_by_later_runs(
    make_export: MakeExport, one_process: Process, tmp_path: Path
) -> None:
    config = make_export("DISTILL.CODEC", "pca8-int8", "DATA.NUM_SAMPLES", "1")
    embed_dataset(plan_embedding(config), one_process)
    manifest = EmbeddingStore(tmp_path / "teacher" / "embeddings").manifest
    assert manifest.projection is not None
    assert manifest.projection.images == 2
    assert 0.1 < manifest.projection.variance_kept < 1
    assert embed_dataset(plan_embedding(make_export("DISTILL.CODEC", "pca8-int8")), one_process).embedded == 7
    assert EmbeddingStore(tmp_path / "teacher" / "embeddings").manifest == manifest


def test_more_components_than_channels_are_refused_before_anything_is_written(
    make_export: MakeExport, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"pca65 .* 64 channels"):
        plan_embedding(make_export("DISTILL.CODEC", "pca65-int4"))
    assert not (tmp_path / "teacher").exists()


def test_a_run_that_cannot_fit_the_disk_is_refused(
    make_export: MakeExport, one_process: Process, store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 4 + 2 * 64 * 16 * 16
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, 9 * size - 1))
    with pytest.raises(UserError, match=r"9 images to embed take 0\.000 GB .* smaller DISTILL\.CODEC"):
        embed_dataset(plan_embedding(make_export()), one_process)
    shutil.copytree(store_path, tmp_path / "teacher", dirs_exist_ok=True)
    assert embed_dataset(plan_embedding(make_export()), one_process).embedded == 0


@pytest.mark.parametrize("codec", ["float16", "int4"])
def test_the_teachers_statistics_are_those_of_the_store(
    codec: str, make_export: MakeExport, one_process: Process, tmp_path: Path
) -> None:
    config = make_export("DATA.RESIZE", "pad", "DISTILL.CODEC", codec)
    embed_dataset(plan_embedding(config), one_process)
    directory = tmp_path / "teacher" / "embeddings"
    gathered = store_statistics(directory)
    assert gathered.cells < 9 * 16 * 16  # padding does not count
    Shard(directory, 0).statistics_path.unlink()
    again = compute_statistics(directory, plan_embedding(config).splits)
    assert again.cells == gathered.cells
    torch.testing.assert_close(again.mean, gathered.mean)
    torch.testing.assert_close(again.variance, gathered.variance)


def test_a_run_catches_up_on_statistics_that_a_kill_left_behind(
    make_export: MakeExport, one_process: Process, tmp_path: Path
) -> None:
    directory = tmp_path / "teacher" / "embeddings"
    embed_dataset(plan_embedding(make_export("DATA.NUM_SAMPLES", "1")), one_process)
    behind = Shard(directory, 0).statistics_path.read_bytes()
    embed_dataset(plan_embedding(make_export("DATA.NUM_SAMPLES", "3")), one_process)
    Shard(directory, 0).statistics_path.write_bytes(behind)
    assert gathered_statistics(directory) is None
    embed_dataset(plan_embedding(make_export()), one_process)
    assert store_statistics(directory).cells == 9 * 16 * 16


def test_a_run_leaves_an_older_stores_statistics_to_their_command(
    make_export: MakeExport, one_process: Process, tmp_path: Path
) -> None:
    directory = tmp_path / "teacher" / "embeddings"
    embed_dataset(plan_embedding(make_export("DATA.NUM_SAMPLES", "1")), one_process)
    Shard(directory, 0).statistics_path.unlink()
    assert embed_dataset(plan_embedding(make_export()), one_process).embedded == 7
    assert gathered_statistics(directory) is None
    assert not Shard(directory, 0).statistics_path.exists()
