"""Checkpoints: SAM3s, students, merged models, and what describes them."""

import errno
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from faults.fault import Expect, Fault, Outcome, Place, Run, refused, snapshot, works
from faults.rows.weights import ASK, BRACKETS, MERGE, TRUNK, edit, edit_json, overwrite, sam3_with
from faults.system import small_disk

_PREDICT = "predict {merged} " + ASK + " --text dog"
_DECODER, _MLP = "detector.transformer.decoder.", "blocks.0.mlp.fc1.weight"
_OUT = ("out.pt*", "answers*", "teacher*")


def _nan(tensor: torch.Tensor) -> torch.Tensor:
    return torch.full_like(tensor, float("nan"))


def _meta(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("meta")


def _sparse(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_sparse()


def _complex(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.complex64)


def _int8(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.int8)


def _no_columns(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:, :0]


def _no_rows(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:0]


_SAM3 = [
    # case, what, whether export meets it too, spoil, word
    ("C-sam-head0", "rotary table with 0 columns", sam3_with(TRUNK, _no_columns, "freqs_cis"), "freqs_cis"),
    ("C-sam-grid0", "rotary tables with 0 rows", sam3_with(TRUNK, _no_rows, "freqs_cis"), "freqs_cis"),
    (
        "C-sam-patch0",
        "patch embedding 0x3x0x0",
        sam3_with(TRUNK, lambda tensor: tensor[:0, :, :0, :0], "patch_embed.proj.weight"),
        "patch_embed.proj.weight",
    ),
    ("C-sam-cplx", "complex weights", sam3_with(_DECODER, _complex, "linear1.weight"), "mlp.fc1.weight"),
    ("C-sam-int8", "int8 weights", sam3_with(_DECODER, _int8, "linear1.weight"), "mlp.fc1.weight"),
    (
        "C-sam-bool",
        "bool weights",
        sam3_with(_DECODER, lambda tensor: tensor > 0, "linear1.weight"),
        "mlp.fc1.weight",
    ),
    ("C-sam-sparse", "sparse weights", sam3_with(_DECODER, _sparse, "linear1.weight"), "linear1.weight"),
    ("C-sam-meta", "meta weights (no data)", sam3_with(_DECODER, _meta, "linear1.weight"), "linear1.weight"),
]
_TEACHER = [
    ("C-exp-head0", "head0", sam3_with(TRUNK, _no_columns, "freqs_cis"), "freqs_cis"),
    ("C-exp-meta", "meta", sam3_with(TRUNK, _meta, _MLP), _MLP),
    ("C-exp-sparse", "sparse", sam3_with(TRUNK, _sparse, _MLP), _MLP),
    ("C-exp-int8", "int8", sam3_with(TRUNK, _int8, _MLP), "mlp.fc1.weight"),
    ("C-exp-cplx", "cplx", sam3_with(TRUNK, _complex, _MLP), "mlp.fc1.weight"),
]


def _student_with(change: Callable[[dict[str, Any]], None]) -> Callable[[Place], None]:
    return lambda place: edit(place.student, change)


def _weight(change: Callable[[torch.Tensor], Any]) -> Callable[[Place], None]:
    def spoil(content: dict[str, Any]) -> None:
        content["model"]["head.3.weight"] = change(content["model"]["head.3.weight"])
        if isinstance(content.get("ema"), dict):
            content["ema"]["head.3.weight"] = change(content["ema"]["head.3.weight"])

    return _student_with(spoil)


def _described(**values: Any) -> Callable[[Place], None]:
    return _student_with(lambda content: content["architecture"].update(values))


def _replaced(name: str, value: Any) -> Callable[[Place], None]:
    return _student_with(lambda content: content.update({name: value}))


_STUDENT: list[tuple[str, str, Callable[[Place], object], Expect]] = [
    ("C-s_cplx", "complex weights", _weight(_complex), refused("head.3.weight", changes=_OUT)),
    ("C-s_meta", "meta weights", _weight(_meta), refused("head.3.weight", changes=_OUT)),
    ("C-s_sparse", "sparse weights", _weight(_sparse), refused("head.3.weight", changes=_OUT)),
    ("C-s_arch_list", "backbone a list", _described(backbone=["a"]), refused("student.pth", "backbone")),
    ("C-s_prep", "preprocessing a list", _replaced("preprocessing", [1]), refused("student.pth", "preprocessing")),
    (
        "C-s_norm",
        "normalisation of wrong shape",
        _replaced("normalisation", {"mean": 5, "std": 5}),
        refused("student.pth", "normalisation"),
    ),
    ("ckpt-h10", "integer weights", _weight(lambda value: value.to(torch.int32)), refused("head.3.weight")),
    (
        "ckpt-h11",
        "strings for numbers in architecture",
        _described(embed_dim="64", embed_size="16"),
        refused("student.pth", "architecture"),
    ),
    ("ckpt-h12", "embed_size 0", _described(embed_size=0), refused("student.pth")),
    ("ckpt-h13", "architecture {}", _replaced("architecture", {}), refused("student.pth")),
    ("ckpt-h14", "backbone timm/../../etc/passwd", _described(backbone="timm/../../etc/passwd"), refused("passwd")),
    ("ckpt-h15", "NaN", _weight(_nan), refused("head.3.weight", "finite")),
    (
        "ckpt-h16",
        "an expanded tensor",
        _weight(lambda value: value[:1, :1, :1, :1].clone().expand(value.shape)),
        works("wrote"),
    ),
]


def _no_pickle(place: Place, content: bytes, name: str) -> None:
    (place.root / name).write_bytes(content)


class _Evil:
    """Runs a command where a pickle is loaded without care."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch evil",)


class _EvilText:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, ("1",)


def _evil(kind: type) -> Callable[[Place], None]:
    return lambda place: torch.save({"model": kind()}, place.root / "x.pt")


def _zip_bomb(place: Place) -> None:
    """2 GB of zeros in 9 MB, as the storage of one tensor."""
    small = place.root / "small.pt"
    torch.save({"weight": torch.zeros(4)}, small)
    with (
        zipfile.ZipFile(small) as source,
        zipfile.ZipFile(place.root / "x.pt", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as bomb,
    ):
        for record in source.infolist():
            if not record.filename.endswith("data/0"):
                bomb.writestr(record.filename, source.read(record))
                continue
            with bomb.open(record.filename, "w", force_zip64=True) as file:
                for _ in range(2 << 10):
                    file.write(bytes(1 << 20))


def _in_little_memory(place: Place, outcome: Outcome) -> None:
    refused("x.pt")(place, outcome)
    assert outcome.peak < 3 << 29, outcome.peak


def _safetensors(
    header: bytes | dict[str, Any], length: int | None = None, body: bytes = b""
) -> Callable[[Place], None]:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    content = struct.pack("<Q", len(text) if length is None else length) + text + body
    return lambda place: _no_pickle(place, content, "x.safetensors")


def _far(end: int) -> dict[str, Any]:
    return {"weight": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, end]}}


def _garbage(place: Place) -> None:
    (place.root / "x.pt").write_bytes(os.urandom(4096))


def _config(change: Callable[[dict[str, Any]], Any]) -> Callable[[Place], None]:
    return lambda place: edit_json(place.hf / "config.json", change)


def _trunk_of(config: dict[str, Any]) -> dict[str, Any]:
    trunk: dict[str, Any] = config["detector_config"]["vision_config"]["backbone_config"]
    return trunk


def _in_trunks(**values: Any) -> Callable[[Place], None]:
    def change(config: dict[str, Any]) -> None:
        for part in ("detector_config", "tracker_config"):
            config[part]["vision_config"]["backbone_config"].update(values)

    return _config(change)


def _strings(config: dict[str, Any]) -> None:
    for part in config["detector_config"].values():
        if isinstance(part, dict) and "hidden_size" in part:
            part["hidden_size"] = str(part["hidden_size"])
    _trunk_of(config)["hidden_size"] = str(_trunk_of(config)["hidden_size"])


def _index(change: Callable[[dict[str, Any]], Any]) -> Callable[[Place], None]:
    return lambda place: edit_json(place.hf / "model.safetensors.index.json", change)


def _all_shards(value: Any) -> Callable[[Place], None]:
    return _index(lambda index: index["weight_map"].update(dict.fromkeys(index["weight_map"], value)))


_HF: list[tuple[str, str, Callable[[Place], object], Expect]] = [
    (
        "H-list",
        "config.json: detector_config a list",
        _config(lambda config: config.update(detector_config=[])),
        refused("config.json", "detector_config"),
    ),
    (
        "H-num",
        "config.json: tracker_config 5",
        _config(lambda config: config.update(tracker_config=5)),
        refused("config.json", "tracker_config"),
    ),
    (
        "H-meta",
        "config.json: efficientsam3 key a string",
        _config(lambda config: config.update(efficientsam3="x")),
        refused("config.json", "efficientsam3"),
    ),
    ("H-types", "config.json: hidden sizes as strings", _config(_strings), refused("config.json", "hidden_size")),
    ("H-zero", "config.json: patch_size 0", _in_trunks(patch_size=0), refused("config.json", "patch_size")),
    ("H-huge", "config.json: image_size 1e9", _in_trunks(image_size=10**9), refused("config.json", "image_size")),
    ("H-bbn", "config.json: backbone null", _in_trunks(backbone=None), refused("config.json", "backbone")),
    ("H-type", "config.json: model_type bert", _in_trunks(model_type="bert"), refused("config.json", "model_type")),
    (
        "H-deep",
        "config.json: 100000 brackets",
        lambda place: (place.hf / "config.json").write_text(BRACKETS),
        refused("config.json"),
    ),
    (
        "H-layers",
        "config.json: layers 10^7 in the text encoder",
        _config(lambda config: config["detector_config"]["text_config"].update(num_hidden_layers=10**7)),
        refused("config.json", "num_hidden_layers"),
    ),
    (
        "H-idx4",
        "index of 100000 brackets",
        lambda place: (place.hf / "model.safetensors.index.json").write_text(BRACKETS),
        refused("index.json"),
    ),
    (
        "ckpt-h25",
        "config.json: auto_map to remote code",
        _config(lambda config: config.update(auto_map={"AutoConfig": "evil/repo--x.Y", "AutoModel": "evil/repo--x.Z"})),
        works("object"),
    ),
    (
        "ckpt-h26",
        "config.json: preprocessing a list",
        _config(lambda config: config["efficientsam3"].update(preprocessing=[1])),
        refused("hf"),
    ),
    (
        "ckpt-h27",
        "config.json: backbone timm/../../x",
        _in_trunks(backbone="timm/../../x"),
        refused("timm/../../x"),
    ),
    (
        "ckpt-h28",
        "config.json: no backbone_config",
        _config(lambda config: config["detector_config"]["vision_config"].pop("backbone_config") and None),
        refused("hf"),
    ),
    ("ckpt-h29", "index names a shard outside the folder", _all_shards("../../etc/passwd"), refused("index.json")),
    ("ckpt-h30", "index names a number", _all_shards(7), refused("index.json")),
    ("ckpt-h31", "index names ..", _all_shards(".."), refused("hf")),
]


def _beside(change: Callable[[dict[str, Any]], Any]) -> Callable[[Place], None]:
    def spoil(place: Place) -> None:
        edit_json(place.merged.with_name("merged.pt.json"), change)

    return spoil


def _seen(**values: Any) -> Callable[[Place], None]:
    return _beside(lambda metadata: metadata["architecture"].update(values))


def _pixels(**values: Any) -> Callable[[Place], None]:
    return _beside(lambda metadata: metadata["preprocessing"].update(values))


_METADATA: list[tuple[str, str, Callable[[Place], object], Expect]] = [
    ("M-a1", "architecture a string", _beside(lambda each: each.update(architecture="x")), refused("architecture")),
    ("M-a3", "embed_size 0", _seen(embed_size=0), refused("merged.pt.json", "embed_size")),
    ("M-a4", 'embed_size "24"', _seen(embed_size="24"), refused("merged.pt.json", "embed_size")),
    ("M-a7", "std 0", _pixels(std=[0, 0, 0]), refused("merged.pt.json", "std")),
    ("M-a8", "mean NaN", _pixels(mean=[float("nan")] * 3), refused("merged.pt.json", "mean")),
    (
        "M-a9",
        "100000 brackets",
        lambda place: place.merged.with_name("merged.pt.json").write_text(BRACKETS),
        refused("merged.pt.json"),
    ),
    ("M-a10", "preprocessing image_size 10^6 (3 TB input)", _pixels(image_size=10**6), refused("image_size")),
    (
        "M-a11",
        "preprocessing image_size 35 where the model takes 224",
        _pixels(image_size=35),
        refused("merged.pt", "35", "224"),
    ),
    ("ckpt-h32", "backbone 5", _seen(backbone=5), refused("merged.pt")),
    ("ckpt-h33", "image_size 10^6", _seen(image_size=10**6), refused("image")),
    ("ckpt-h34", "preprocessing list", _beside(lambda each: each.update(preprocessing=[1])), refused("merged.pt")),
    ("ckpt-h35", "resize pad where it was square (another answer, no crash)", _pixels(resize="pad"), works("object")),
]


def _unreadable(path: Path) -> None:
    path.chmod(0)


def _fifo(place: Place) -> None:
    os.mkfifo(place.root / "x.pt")


def _flip_student(place: Place) -> None:
    overwrite(place.student, bytes(64))


def _flip_hf(place: Place) -> None:
    overwrite(next(place.hf.glob("*.safetensors")), b"\x3c" * 4000)


def _trunk_alone(place: Place) -> None:
    edit(place.sam3, lambda tensors: {key: value for key, value in tensors.items() if key.startswith(TRUNK)})


def _full_disk(command: str, kept: str, size: str) -> Callable[[Place, Run], None]:
    def attempt(place: Place, run: Run) -> None:
        # The bases are copied before the disk is mounted over a folder beside them.
        before = [place.student, place.sam3, place.merged]
        with small_disk(place.root / "disk", size) as disk:
            (disk / kept).write_text("mine")
            outcome = run(command)
            refused("disk", "space")(place, outcome)
            assert [path.name for path in disk.iterdir()] == [kept], "something is left there"
            assert (disk / kept).read_text() == "mine"
        assert all(path.is_file() for path in before)

    return attempt


def _fuse_onto(make: Callable[[Path, Path], object]) -> Callable[[Place, Run], None]:
    def attempt(place: Place, run: Run) -> None:
        make(place.merged, place.root / "other.pt")
        before = snapshot(place.root)
        outcome = run("fuse {merged} --output {root}/other.pt")
        refused("input", "lost")(place, outcome)
        refused().compare(before, snapshot(place.root), outcome)

    return attempt


def _eio() -> None:
    """Every fsync fails, as on a dying disk."""

    def fails(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    os.fsync = fails


def _nothing_written(place: Place, outcome: Outcome) -> None:
    refused("out.pt", "error")(place, outcome)
    assert not [path.name for path in place.root.iterdir() if "out.pt" in path.name], outcome


def _through_a_link(place: Place) -> None:
    (place.root / "real.pt").write_text("mine")
    (place.root / "out.pt").symlink_to("real.pt")


def _target_stays(place: Place, outcome: Outcome) -> None:
    """The link may become the model, or the user is asked; what it leads to is the user's."""
    assert outcome.code in (0, 2), outcome
    assert "Traceback" not in outcome.err, outcome
    assert (place.root / "real.pt").read_text() == "mine", outcome


def _folder(name: str, config: bool) -> Callable[[Place], None]:
    def spoil(place: Place) -> None:
        _ = place.student, place.sam3
        (place.root / name).mkdir(parents=True, exist_ok=True)
        (place.root / name / "mine.txt").write_text("mine")
        if config:
            (place.root / name / "config.json").write_text("{}")

    return spoil


def _into_the_parent(place: Place, run: Run) -> None:
    _folder("a/b", config=False)(place)
    before = snapshot(place.root)
    words = place.fill("merge --student-ckpt {student} --sam3-ckpt {sam3} --format hf --output ..")
    outcome = run(words, cwd=place.root / "a" / "b")
    assert outcome.code == 2, outcome
    refused().compare(before, snapshot(place.root), outcome)


def _into_the_current(place: Place, run: Run) -> None:
    _folder("a", config=True)(place)
    before = snapshot(place.root)
    words = place.fill("merge --student-ckpt {student} --sam3-ckpt {sam3} --format hf --output .")
    outcome = run(words, cwd=place.root / "a")
    assert outcome.code == 2, outcome
    refused().compare(before, snapshot(place.root), outcome)


def _row(case: str, what: str, command: str, spoil: Callable[[Place], object] | None, expect: Expect) -> Fault:
    return Fault(case, what, command, expect, spoil, slow=True)


_X = "predict {root}/x.pt " + ASK + " --text dog"
_XS = "predict {root}/x.safetensors " + ASK + " --text dog"
_HF_ASK = "predict {hf} " + ASK + " --text dog"

ROWS = [
    *[_row(case, f"SAM3 with {what}: merge", MERGE, spoil, refused(word)) for case, what, spoil, word in _SAM3],
    *[_row(case, f"SAM3 ({what}): export", "{export}", spoil, refused(word)) for case, what, spoil, word in _TEACHER],
    *[_row(case, f"student with {what}: merge", MERGE, spoil, expect) for case, what, spoil, expect in _STUDENT],
    *[_row(case, f"HF {what}: predict", _HF_ASK, spoil, expect) for case, what, spoil, expect in _HF],
    *[_row(case, f"metadata: {what}: predict", _PREDICT, spoil, expect) for case, what, spoil, expect in _METADATA],
    _row(
        "H-teach1",
        "HF directory as teacher: detector_config a list: export",
        "export --cfg {checkout}/stage1/configs/teacher/sam_vit_huge_sa1b.yaml --data-path {data} "
        "--output {root}/teacher --resume {hf} --opts {tiny}",
        _config(lambda config: config.update(detector_config=[])),
        refused("config.json", "detector_config"),
    ),
    _row(
        "C-pred-nan",
        "SAM3 with NaN in decoders: predict --point",
        "predict {sam3} " + ASK + " --point 50 50",
        sam3_with("tracker.sam_mask_decoder.", _nan, "weight"),
        refused("mask_decoder", "finite"),
    ),
    _row(
        "C-pred-nan2",
        "SAM3 with NaN in decoders: predict --text dog",
        "predict {sam3} " + ASK + " --text dog",
        sam3_with(_DECODER, _nan, "linear1.weight"),
        refused("finite"),
    ),
    _row("new-ckpt-2", "HF weights of which 4000 bytes changed: predict", _HF_ASK, _flip_hf, refused("sha-256")),
    _row("C-zipbomb", "zip bomb: predict", _X, _zip_bomb, _in_little_memory),
    Fault(
        "U-flipm",
        "64 bytes of a checkpoint zeroed: merge",
        MERGE,
        refused("student.pth"),
        _flip_student,
    ),
    Fault(
        "P6",
        "model unreadable (mode 000): predict",
        _PREDICT,
        refused("merged.pt", "permission"),
        lambda place: _unreadable(place.merged),
        slow=True,
        options={"unprivileged": True},
    ),
    Fault(
        "ckpt-h1",
        "HF weights unreadable: predict",
        _HF_ASK,
        refused("permission"),
        lambda place: _unreadable(next(place.hf.glob("*.safetensors"))),
        slow=True,
        options={"unprivileged": True},
    ),
    Fault(
        "ckpt-h2",
        "ONNX graph unreadable: predict",
        "predict {onnx} " + ASK + " --text dog",
        refused("image_encoder.onnx"),
        lambda place: _unreadable(place.onnx / "image_encoder.onnx"),
        slow=True,
        options={"unprivileged": True},
    ),
    _row("ckpt-h3", "FIFO as model: predict", _X, _fifo, refused("x.pt")),
    _row(
        "ckpt-h4",
        "SAM3 with patch embedding 1e9x3x14x14 of one stored element: merge",
        MERGE,
        sam3_with(TRUNK, lambda _: torch.zeros(1).expand(10**9, 3, 14, 14), "patch_embed.proj.weight"),
        refused("sam3.pt"),
    ),
    _row(
        "ckpt-h5",
        "SAM3 with float64 weights: merge",
        MERGE,
        sam3_with(_DECODER, lambda value: value.double(), "linear1.weight"),
        works("wrote"),
    ),
    _row("ckpt-h6", "SAM3 with trunk alone: merge", MERGE, _trunk_alone, refused("sam3")),
    _row(
        "ckpt-h7",
        "SAM3 with NaN in its decoders: merge",
        MERGE,
        sam3_with(_DECODER, _nan, "linear1.weight"),
        refused("linear1.weight", "finite"),
    ),
    _row(
        "ckpt-h8",
        "SAM3 with NaN in its trunk (which is left out): merge",
        MERGE,
        sam3_with(TRUNK, _nan, _MLP),
        works("wrote"),
    ),
    _row("ckpt-h9", "SAM3 with NaN in its trunk: export", "{export}", sam3_with(TRUNK, _nan, _MLP), refused("finite")),
    _row(
        "ckpt-h17",
        "garbage.pt: predict",
        _X,
        lambda place: _no_pickle(place, os.urandom(4096), "x.pt"),
        refused("x.pt"),
    ),
    _row("ckpt-h18", "empty.pt: predict", _X, lambda place: _no_pickle(place, b"", "x.pt"), refused("x.pt")),
    _row(
        "ckpt-h19",
        "cut.pt: predict",
        _X,
        lambda place: _no_pickle(place, place.merged.read_bytes()[:1_000_000], "x.pt"),
        refused("x.pt"),
    ),
    _row("ckpt-h20", "evil.pt: predict", _X, _evil(_Evil), refused("x.pt", "run code")),
    _row("ckpt-h21", "evil2.pt: predict", _X, _evil(_EvilText), refused("x.pt", "run code")),
    _row("ckpt-h22", "safetensors that lie of their header's length", _XS, _safetensors({}, 1 << 62), refused("x.saf")),
    _row(
        "ckpt-h23",
        "safetensors that lie of a shape",
        _XS,
        _safetensors(_far([0, 16]), body=bytes(16)),
        refused("x.saf"),
    ),
    _row("ckpt-h24", "safetensors that lie of offsets", _XS, _safetensors(_far(1 << 42)), refused("x.saf")),
    Fault(
        "ckpt-h36",
        "merge onto a full disk (native)",
        _full_disk(MERGE.replace("{root}/out.pt", "{root}/disk/out.pt"), "mine.txt", "5m"),
        slow=True,
    ),
    Fault(
        "ckpt-h37",
        "merge onto a full disk (hf)",
        _full_disk(MERGE.replace("{root}/out.pt", "{root}/disk/hf --format hf"), "mine.txt", "5m"),
        slow=True,
    ),
    Fault(
        "ckpt-h38",
        "fuse onto a full disk",
        _full_disk("fuse {merged} --output {root}/disk/out.pt", "mine.txt", "5m"),
        slow=True,
    ),
    _row("ckpt-h39", "fuse onto itself", "fuse {merged} --output {merged}", None, refused("input", "lost")),
    Fault("ckpt-h40", "fuse onto a hard link of itself", _fuse_onto(os.link), slow=True),
    Fault("new-ckpt-1", "fuse onto a symbolic link to itself", _fuse_onto(os.symlink)),
    _row(
        "ckpt-h41",
        "merge --output inside the input HF directory",
        "merge --student-ckpt {student} --sam3-ckpt {hf} --format hf --output {hf}",
        None,
        refused(),
    ),
    Fault("ckpt-h42", "EIO at fsync of a merged model", MERGE, _nothing_written, options={"inject": _eio}),
    _row("ckpt-h43", "merge --output onto a link to a file", MERGE, _through_a_link, _target_stays),
    Fault("ckpt-h44", "merge --format hf --output .. of the current folder", _into_the_parent),
    Fault("ckpt-h45", "merge --format hf --output . in a folder with a config.json", _into_the_current),
    _row("ckpt-h46", "merge --keep nonsense", MERGE + " --keep nonsense", None, refused("nonsense")),
    _row("ckpt-h47", 'merge --target-prefix ""', MERGE + " --target-prefix ''", None, refused("prefix")),
    _row("ckpt-h48", 'merge --replace-prefix ""', MERGE + " --replace-prefix ''", None, works("removed", "wrote")),
    _row(
        "ckpt-h49",
        "merge --replace-prefix that matches nothing",
        MERGE + " --replace-prefix nothing.",
        None,
        refused("nothing."),
    ),
]
