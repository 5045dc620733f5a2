import json
from pathlib import Path

import pytest
import torch

from efficientsam3.cli import main
from efficientsam3.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from efficientsam3.evaluate.masks.open_models import FedPixels, last_nonrandom, named_zeros, open_models
from efficientsam3.evaluate.masks.request import EvaluationRequest
from efficientsam3.evaluate.masks.segmenters import WholeModel
from efficientsam3.evaluate.run import Evaluation, evaluate_masks
from efficientsam3.export.onnx.run import export_onnx
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.decoders import load_decoder


def evaluate(models: list[str], data: Path, prompt: list[str], out: Path, **request: object) -> Evaluation:
    return evaluate_masks(
        EvaluationRequest.model_validate(
            {"models": models, "data": data, "prompt": prompt, "out": out, "device": "cpu", **request}
        )
    )


@pytest.fixture
def data(tmp_path: Path, write_sa1b, two_images) -> Path:
    return write_sa1b(tmp_path / "sa1b", two_images)


def test_several_models_and_what_is_written(tmp_path: Path, data, write_store, box_decoder, student_path) -> None:
    store = write_store(tmp_path / "store", ["sa_1", "sa_2"])
    models = [f"teacher={store}", "zeros", str(student_path)]
    evaluation = evaluate(models, data, ["box", "point"], tmp_path / "out", decoder=box_decoder)
    assert [(row.model, row.prompt, row.objects) for row in evaluation.summaries] == [
        (model, prompt, 4) for prompt in ("box", "point") for model in ("teacher", "zeros", "training/ckpt_epoch_1.pth")
    ]
    # The decoder fills boxes, and all objects are boxes.
    assert all(row.miou is not None and row.miou > 0.9 for row in evaluation.summaries[:3])
    assert evaluation.summaries[0].agreement == evaluation.summaries[1].share == 1
    assert evaluation.summaries[2].from_zeros is None, "this decoder does not look at embeddings: there is no way"
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["format_version"] == 1
    assert {(row["model"], row["other"]) for row in results["differences"] if row["prompt"] == "box"} == {
        ("zeros", "teacher"),
        ("training/ckpt_epoch_1.pth", "teacher"),
        ("training/ckpt_epoch_1.pth", "zeros"),
    }
    assert results["models"] == models
    assert results["decoder"] == str(box_decoder)
    assert results["prompts"] == ["box", "point"]
    assert results["selection"] == {"min_area": 0, "max_images": 0, "max_objects": 0, "seed": 0, "negatives": 2}
    assert results["fed"] == {"resize": "teacher", "mean": "teacher"}
    assert results["max_hole_area"] == 256
    assert (results["broken"], results["without_embedding"]) == ([], 0)
    assert results["images"].keys() == {"sa_1", "sa_2"}
    rows = results["images"]["sa_1"]
    assert len(rows) == 2 * 2 * 3
    assert rows[0].keys() == {"model", "number", "prompt", "area", "iou", "agreement", "score"}
    assert (rows[0]["model"], rows[0]["number"], rows[0]["prompt"], rows[0]["area"]) == ("teacher", 0, "box", 800)
    assert rows[0]["score"] == pytest.approx(0.75)
    ious = [row["iou"] for of_image in results["images"].values() for row in of_image if row["prompt"] == "box"]
    assert sum(ious) / len(ious) == pytest.approx(sum(row["miou"] for row in results["summary"][:3]) / 3)


def test_both_formats_give_the_same_scores(tmp_path: Path, data, write_coco, two_images, box_decoder) -> None:
    coco = write_coco(tmp_path / "coco", two_images)
    one, other = (
        evaluate(["random"], folder, ["box", "center"], tmp_path / "out", decoder=box_decoder).summaries
        for folder in (data, coco)
    )
    assert one == other


def test_only_what_the_store_has_and_can_be_read_is_measured(
    tmp_path: Path, data, write_store, box_decoder, two_images, write_sa1b
) -> None:
    write_sa1b(data, {"sa_3": two_images["sa_1"], **two_images, "sa_4": two_images["sa_2"]})
    (data / "images" / "val" / "sa_2.jpg").write_bytes(b"not an image")
    annotation = data / "annotations" / "val" / "sa_4.json"
    annotation.write_text(annotation.read_text().replace('"width": 48', '"width": 47'))
    store = write_store(tmp_path / "store", ["sa_1", "sa_2", "sa_4"])
    measurement = evaluate([str(store)], data, ["box"], tmp_path / "out", decoder=box_decoder).measurement
    assert (measurement.images, measurement.lacking, len(measurement.broken)) == (1, 1, 2)
    assert {score.image_id for score in measurement.scores} == {"sa_1"}
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert ["sa_2" in results["broken"][0], "sa_4" in results["broken"][1]] == [True, True]
    assert results["without_embedding"] == 1


def test_a_mismatch_on_purpose_changes_what_encoders_are_fed(tmp_path, student_path, box_decoder, write_store) -> None:
    store = write_store(tmp_path / "store", ["sa_1"])
    fed = FedPixels(resize="pad", mean="imagenet")
    own, stored = open_models([str(student_path), str(store)], box_decoder, FedPixels(), torch.device("cpu"))
    other, still = open_models([str(student_path), str(store)], box_decoder, fed, torch.device("cpu"))
    assert own.preprocessing == stored.preprocessing == still.preprocessing == Preprocessing(image_size=64)
    assert other.preprocessing == Preprocessing(image_size=64, resize="pad", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    pixels = torch.randint(0, 256, (3, 20, 60), dtype=torch.uint8)
    assert not torch.equal(own.embed("sa_1", pixels), other.embed("sa_1", pixels))
    assert torch.equal(stored.embed("sa_1", pixels), still.embed("sa_1", pixels))


@pytest.mark.parametrize(
    ("models", "changes", "named"),
    [
        (["nowhere.pt"], {}, r"nowhere\.pt does not exist"),
        (["random"], {"decoder": None}, "no mask decoder"),
        (["random", "random"], {}, "Two models are called 'random'"),
        (["random:loud"], {}, "is not understood"),
        (["random:-1"], {}, "is not understood"),
        (["random"], {"prompt": ["text"]}, "SA-1B's objects have no names"),
        (["random"], {"min_area": 10**6}, "No object could be measured"),
        (["random"], {"run": [Path("nowhere")]}, r"nowhere/metrics\.jsonl cannot be read"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path, data, box_decoder, models, changes, named) -> None:
    request = {"decoder": box_decoder, "prompt": ["box"]} | changes
    with pytest.raises(UserError, match=named):
        evaluate(models, data, out=tmp_path / "out", **request)
    assert not (tmp_path / "out").exists()


def test_stores_that_do_not_fit_are_refused(tmp_path: Path, data, write_store, box_decoder, tiny_sam3_path) -> None:
    with pytest.raises(UserError, match=r"8 channels on 4x4 cells at 64 pixels, the decoder takes 64 on 16x16 at 224"):
        store = write_store(tmp_path / "small", ["sa_1"])
        evaluate([str(store)], data, ["box"], tmp_path / "out", decoder=tiny_sam3_path)
    with pytest.raises(UserError, match="flipped"):
        store = write_store(tmp_path / "flipped", ["sa_1"], hflip=0.5)
        evaluate([str(store)], data, ["box"], tmp_path / "out", decoder=box_decoder)


def test_text_needs_a_whole_model_and_finds_by_category(
    tmp_path: Path, write_coco, two_images, box_decoder, tiny_sam3_path
) -> None:
    coco = write_coco(tmp_path / "coco", two_images)
    with pytest.raises(UserError, match="only a SAM3 has a text encoder"):
        evaluate(["random"], coco, ["text"], tmp_path / "out", decoder=box_decoder)
    evaluation = evaluate([str(tiny_sam3_path)], coco, ["text", "box"], tmp_path / "out")
    assert [(row.prompt, row.objects) for row in evaluation.summaries] == [("text", 4), ("box", 4)]
    with pytest.raises(UserError, match="every model brings its own"):
        evaluate([str(tiny_sam3_path)], coco, ["box"], tmp_path / "out", decoder=box_decoder)


@pytest.mark.parametrize(
    ("models", "place"),
    [(["a.pt", "random"], 0), (["a.pt", "b.pt", "noise=random:2", "zeros"], 1), (["random", "a.pt"], 1)],
)
def test_examples_are_of_the_last_model_that_sees_the_images(models: list[str], place: int) -> None:
    assert last_nonrandom(models) == place
    assert last_nonrandom(["random"]) == -1


def test_zeros_go_by_several_names() -> None:
    assert named_zeros(["a.pt", "nothing=random:0"]) == "nothing"
    assert named_zeros(["a.pt", "zeros"]) == "zeros"
    assert named_zeros(["a.pt", "random"]) is None


def test_graphs_are_measured_as_the_model_they_come_from(
    tmp_path: Path, write_coco, two_images, tiny_sam3_path
) -> None:
    folder = write_coco(tmp_path / "coco", two_images)
    graphs = tmp_path / "onnx"
    export_onnx(tiny_sam3_path, graphs, variants=["int8"], calibrate=folder / "val2017")
    models = [str(tiny_sam3_path), f"graphs={graphs}", f"coarse={graphs}:int8"]
    by_box = evaluate(models, folder, ["box", "text"], tmp_path / "out").summaries[:3]
    assert [row.model for row in by_box][1:] == ["graphs", "coarse"]
    assert by_box[1].agreement > 0.99 > by_box[2].agreement > 0
    (whole,) = open_models([str(graphs)], None, FedPixels(), torch.device("cpu"))
    assert isinstance(whole, WholeModel)
    with pytest.raises(UserError, match="is in ONNX graphs, whose parts cannot be exchanged"):
        _ = whole.decoder
    with pytest.raises(UserError, match="has no fp16 image encoder"):
        open_models([f"{graphs}:fp16"], None, FedPixels(), torch.device("cpu"))


def test_an_exported_encoder_is_fed_as_its_student_was(tmp_path: Path, student_path, box_decoder) -> None:
    export_onnx(student_path, tmp_path / "out")
    exported = tmp_path / "out" / "image_encoder.onnx"
    bare = tmp_path / "bare.onnx"
    bare.write_bytes(exported.read_bytes())
    own, graph, unknown = open_models(
        [str(student_path), str(exported), str(bare)], box_decoder, FedPixels(), torch.device("cpu")
    )
    assert graph.preprocessing == own.preprocessing
    assert unknown.preprocessing == load_decoder(box_decoder, torch.device("cpu")).preprocessing != own.preprocessing
    pixels = torch.randint(0, 256, (3, 20, 60), dtype=torch.uint8)
    assert torch.allclose(own.embed("sa_1", pixels), graph.embed("sa_1", pixels), atol=1e-4)


def test_the_command_prints_one_table(tmp_path: Path, data, box_decoder, capsys) -> None:
    out = tmp_path / "out"
    options = ["--data", data, "--decoder", box_decoder, "--prompt", "box", "center", "--out", out, "--device", "cpu"]
    assert main(["evaluate", "noise=random", "zeros=random:0", *map(str, options), "--max-objects", "1"]) == 0
    printed = capsys.readouterr().out
    rows = [line.split()[:2] for line in printed.splitlines()]
    asked = [[name, prompt] for prompt in ("box", "center") for name in ("noise", "zeros")]
    assert [row for row in rows if row in asked] == 2 * asked, "two tables"
    assert (out / "report.html").is_file()
    assert main(["evaluate", "random", "--data", str(data), "--out", str(out)]) == 2
    assert "--decoder" in capsys.readouterr().err
