"""Trainings: their OUTPUT, what they resume from, and the system under them."""

import errno
import json
import os
import resource
import shutil
import signal
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch.utils.data

from faults.fault import Fault, Outcome, Place, Run, Runner, refused, snapshot, works
from faults.system import need_root, no_locks, small_disk, small_shared_memory


# The copied training was made from other paths, which would count as another configuration. Two images: one step.
def _resume(more: str = "") -> str:
    return f"{{train}} TRAIN.EPOCHS 3 DATA.NUM_SAMPLES 2 {more} --allow-config-change"


_RESUME = _resume()
_NEW = "{train} DATA.NUM_SAMPLES 2 --output {root}/new"
_TO_THE_END = "ckpt_epoch_2.pth"


# --- the system under a training


def _no_reading() -> None:
    def preadv(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    os.preadv = preadv


def _at_third_read(action: Callable[[], object]) -> None:
    """Do something while records are being read."""
    real, count = os.preadv, [0]

    def preadv(*arguments: Any) -> int:
        count[0] += 1
        if count[0] == 3:
            action()
        return real(*arguments)

    os.preadv = preadv


def _few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))


def _readers_die() -> None:
    """As the kernel kills them where memory is short."""
    real = PIL.Image.open

    def open_image(*arguments: Any, **options: Any) -> Any:
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    PIL.Image.open = open_image


def _killed_when_saved(name: str, after: bool) -> None:
    """SIGKILL just before or after a file of this name appears."""
    real = os.replace

    def replace(source: Any, target: Any, **options: Any) -> None:
        ends = os.path.basename(target) == name
        if ends and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        real(source, target, **options)
        if ends:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace


# --- what is looked at


def _epochs(folder: Path) -> list[float]:
    return [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _seeds(folder: Path) -> dict[str, int]:
    return {
        path.name: torch.load(path, weights_only=True)["config"]["SEED"] for path in sorted(folder.glob("ckpt_*.pth"))
    }


def _kept(before: dict[str, str], folder: Path, names: Sequence[str]) -> None:
    """The content of some files is still in `folder`, under whatever name."""
    there = set(snapshot(folder).values())
    lost = [name for name in names if before[name] not in there]
    assert not lost, f"lost: {lost}"


# --- OUTPUT


def _two_at_once(place: Place, run: Run) -> None:
    words = place.fill("{train} TRAIN.EPOCHS 6 PRINT_FREQ 1")
    shutil.rmtree(place.training)
    second = Place(place.root.parent / "second", lambda name: place.root / name)
    second.root.mkdir()
    outcomes: list[Outcome] = []
    first = threading.Thread(target=lambda: outcomes.append(run([*words, "SEED", "1"], timeout=200)))
    first.start()
    log, deadline = place.root / "training/log_rank0.txt", time.monotonic() + 150
    while not (log.exists() and "batch" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    refused("in use", "process")(second, Runner(second)([*words, "SEED", "2"], timeout=200))
    first.join()
    works("done")(place, outcomes[0])
    assert set(_seeds(place.training).values()) == {1}
    assert json.loads((place.training / "config.json").read_text())["SEED"] == 1


def _killed_leaves_no_lock(place: Place, run: Run) -> None:
    """Not even by an image-reading process that outlives it for a while."""
    _finished(place)
    line = _resume("DATA.NUM_WORKERS 1")
    assert run(line, inject=partial(_killed_when_saved, _TO_THE_END, False)).code == -signal.SIGKILL
    works("done")(place, run(line))


def _begun_anew_and_killed(place: Place, run: Run) -> None:
    before = snapshot(place.training)
    anew = _resume("SEED 5 TRAIN.AUTO_RESUME false")
    killed = run(anew, inject=partial(_killed_when_saved, "ckpt_epoch_0.pth", True))
    assert killed.code == -signal.SIGKILL, killed
    outcome = run(_resume("SEED 5"))
    works("continuing from", "ckpt_epoch_0.pth", "done")(place, outcome)
    assert _epochs(place.training) == [0, 1, 2]
    assert set(_seeds(place.training).values()) == {5}
    _kept(before, place.training, ["ckpt_epoch_0.pth", "ckpt_epoch_1.pth", "metrics.jsonl", "best.json", "config.json"])


def _begun_anew(place: Place, run: Run) -> None:
    works("done")(place, run("{train} TRAIN.EPOCHS 1 DATA.NUM_SAMPLES 2 SEED 5 TRAIN.AUTO_RESUME false"))
    assert _epochs(place.training) == [0]
    assert json.loads((place.training / "best.json").read_text())["epoch"] == 0
    assert _seeds(place.training)["ckpt_epoch_0.pth"] == 5


def _went_back(place: Place, run: Run) -> None:
    """Killed at the end of its first epoch, whose checkpoint is of an older run, too."""
    before = snapshot(place.training)
    back = _resume("SEED 5 --resume {training}/ckpt_epoch_0.pth")
    killed = run(back, inject=partial(_killed_when_saved, "ckpt_epoch_1.pth", False))
    assert killed.code == -signal.SIGKILL, killed
    works("continuing from", "ckpt_epoch_0.pth", "done")(place, run(_resume("SEED 5")))
    _kept(before, place.training, ["ckpt_epoch_0.pth", "ckpt_epoch_1.pth", "metrics.jsonl"])
    assert _epochs(place.training) == [0, 1, 2]
    assert _seeds(place.training) == {"ckpt_epoch_0.pth": 0, "ckpt_epoch_1.pth": 5, "ckpt_epoch_2.pth": 5}


def _killed_while_saving(place: Place, run: Run) -> None:
    mine = place.training / ".notes.txt.abcdefgh.tmp"
    mine.write_text("mine")
    killed = run(_RESUME, inject=partial(_killed_when_saved, _TO_THE_END, False))
    assert killed.code == -signal.SIGKILL, killed
    assert list(place.training.glob(".ckpt_*")), "nothing was left, so that nothing is tried"
    works("done")(place, run(_RESUME))
    assert [path.name for path in place.training.glob(".*.tmp")] == [mine.name]


def _finished(place: Place) -> Path:
    """There is a training in OUTPUT, of two epochs."""
    return place.training


def _last_epoch_is_of_another(place: Place) -> None:
    """As a first release left it that began anew over an old training, and was killed."""
    metrics = place.training / "metrics.jsonl"
    metrics.write_text(metrics.read_text().splitlines(keepends=True)[0])


def _bracketed(place: Place, run: Run) -> None:
    works("done")(place, run("{train} TRAIN.EPOCHS 1 DATA.NUM_SAMPLES 2 --output a[/nope]b"))
    assert "epoch 0" in (place.root / "a[" / "nope]b" / "log_rank0.txt").read_text()


def _fails_at_once(place: Place, run: Run) -> None:
    line = "{train} DISTILL.TEACHER_EMBED_PATH {root}/absent --output {root}/new"
    refused("absent", "does not exist")(place, run(line))
    there = {path.name for path in (place.root / "new").iterdir() if path.suffix != ".lock"}
    assert there <= {"log_rank0.txt", "config.json"}, there


def _into_the_exports_output(place: Place, run: Run) -> None:
    before = snapshot(place.store)
    works("done")(place, run("{train} TRAIN.EPOCHS 1 DATA.NUM_SAMPLES 2 --output {teacher}"))
    assert snapshot(place.store) == before


# --- metrics.jsonl


def _metrics(change: Callable[[bytes], bytes]) -> Callable[[Place], object]:
    def spoil(place: Place) -> None:
        path = place.training / "metrics.jsonl"
        path.write_bytes(change(path.read_bytes()))

    return spoil


def _metrics_is_a_folder(place: Place) -> None:
    path = place.training / "metrics.jsonl"
    path.unlink()
    path.mkdir()
    (path / "mine.txt").write_text("mine")


def _without_epoch(content: bytes) -> bytes:
    first, second = content.splitlines(keepends=True)
    return first.replace(b'"epoch"', b'"ep"') + second


def _resumes_with(lines: list[int], *words: str) -> Callable[[Place, Run], None]:
    """Resumes, with the figures of these epochs; the damaged file is still there, under another name."""

    def command(place: Place, run: Run) -> None:
        before = snapshot(place.training)
        works("metrics.jsonl", *words, _TO_THE_END)(place, run(_RESUME))
        assert _epochs(place.training) == [*lines, 2]
        _kept(before, place.training, ["metrics.jsonl", "ckpt_epoch_0.pth", "ckpt_epoch_1.pth"])

    return command


_METRICS: list[tuple[str, str, str, Callable[[bytes], bytes], list[int], str]] = [
    ("U-met1", "train-h13", "ends in half a line", lambda content: content[:-20], [0], "line 2 is not JSON"),
    ("U-met2", "train-h14", "has a line without epoch", _without_epoch, [1], "line 1 is not an epoch's metrics"),
    ("U-met3", "train-h15", "is binary", lambda content: bytes(range(256)) * 4, [], "is not JSON"),
    ("U-met5", "train-h17", "has a number in each line", lambda content: b"1\n2\n", [], "is not an epoch's metrics"),
]


# --- checkpoints


def _cut(*names: str) -> Callable[[Place], object]:
    def spoil(place: Place) -> None:
        for name in names:
            os.truncate(place.training / name, 1000)

    return spoil


def _zero_stretch(place: Place) -> None:
    """64 bytes in the middle of a tensor's: the file keeps its size, and its archive its structure."""
    with (place.training / "ckpt_epoch_1.pth").open("r+b") as file:
        file.seek(1_000_000)
        while not any(stretch := file.read(64)):
            pass
        file.seek(-len(stretch), os.SEEK_CUR)
        file.write(bytes(64))


def _zeroed(place: Place, outcome: Outcome) -> None:
    """The damage is named, and what is trained on are numbers that were saved."""
    assert "ckpt_epoch_1.pth" in outcome.err, outcome
    assert "continuing from" not in outcome.err or "ckpt_epoch_0.pth" in outcome.err, outcome
    assert outcome.code in (0, 2), outcome
    assert "Traceback" not in outcome.err, outcome


def _folder_named(name: str) -> Callable[[Place], object]:
    def spoil(place: Place) -> None:
        (place.root / "new" / name).mkdir(parents=True)

    return spoil


def _absurd_epoch(place: Place) -> None:
    (place.training / f"ckpt_epoch_{'9' * 20}.pth").touch()


# --- full disks


def _full_before_the_first_file(place: Place, run: Run) -> None:
    with small_disk(place.root / "disk", "64k"):
        for free in (0, 8, 20):
            (place.root / "disk/filling").write_bytes(bytes(1024 * (64 - free)))
            outcome = run("{train} DATA.NUM_SAMPLES 2 TRAIN.EPOCHS 1 --output {root}/disk/new")
            refused("No space left", "disk/new")(place, outcome)
            shutil.rmtree(place.root / "disk/new", ignore_errors=True)


def _full_while_saving(place: Place, run: Run, times: int = 1, room: bool = False) -> None:
    output = place.root / "disk/new"
    keys = "{train} DATA.NUM_SAMPLES 2 TRAIN.EPOCHS 4"
    line = f"{keys} --output {{root}}/disk/new"
    with small_disk(place.root / "disk", "26m"):
        for number in range(times):
            outcome = run(line)
            refused("Cannot write", "ckpt_epoch_")(place, outcome)
            assert number == 0 or "continuing from" in outcome.err, outcome
            whole = sorted(path.name for path in output.glob("ckpt_*"))
            assert whole == ["ckpt_epoch_0.pth", "ckpt_epoch_1.pth"]
            assert all(torch.load(output / name, weights_only=True)["finished"] for name in whole)
        if room:
            (output / "ckpt_epoch_0.pth").unlink()
            works("ckpt_epoch_1.pth", "done")(place, run(line.replace(keys, f"{keys} TRAIN.KEEP_EPOCHS 1")))
            assert _epochs(output) == [0, 1, 2, 3]


def _cramped(timeout: float, hide: bool = False) -> Callable[[Place, Run], None]:
    def command(place: Place, run: Run) -> None:
        need_root()
        line = "{train} DATA.NUM_WORKERS 2 --batch-size 4 --output {root}/new"
        outcome = run(line, inject=partial(small_shared_memory, "1m", hide), timeout=timeout)
        refused("/dev/shm", "--shm-size", "NUM_WORKERS")(place, outcome)

    return command


# --- the store and the images


def _set_embeddings(place: Place, first: int, count: int) -> None:
    """NaN in some records of each shard, with the right checksums."""
    store = place.store
    for keys in store.glob("rank*-keys.txt"):
        rank = keys.name.split("-")[0]
        number = len(keys.read_text().splitlines())
        values = np.fromfile(store / f"{rank}-values.bin", np.uint8).reshape(number, -1)
        values[first : first + count, 4:].view(np.float16)[:] = np.nan  # after the seed
        values.tofile(store / f"{rank}-values.bin")
        crcs = [zlib.crc32(record.tobytes()).to_bytes(4, "little") for record in values]
        (store / f"{rank}-crc32.bin").write_bytes(b"".join(crcs))
        for bound in store.glob(f"{rank}-*bound*"):  # later versions' checksums; without them it is an older store
            bound.unlink()


def _all_nan(place: Place) -> None:
    _set_embeddings(place, 0, 100)


def _one_nan(place: Place) -> None:
    _set_embeddings(place, 0, 1)


def _image_gone(place: Place) -> None:
    place.image.unlink()


def _swap(place: Place) -> None:
    first, second = sorted(place.images.glob("*.jpg"))[:2]
    first.rename(place.root / "first")
    second.rename(first)
    (place.root / "first").rename(second)


def _both_named(place: Place, outcome: Outcome) -> None:
    """Neither is trained on, with the other's embedding."""
    assert outcome.code in (0, 2), outcome
    for image in sorted(place.images.glob("*.jpg"))[:2]:
        assert f"{image.stem}'" in outcome.err, outcome


def _split_gone(split: str) -> Callable[[Place], object]:
    def spoil(place: Place) -> None:
        shutil.rmtree(place.data / "images" / split)

    return spoil


def _all_broken(place: Place) -> None:
    for path in place.images.glob("*.jpg"):
        path.write_bytes(b"")


def _while_training(what: str) -> Callable[[Place, Run], None]:
    def command(place: Place, run: Run) -> None:
        values = place.store / "rank0-values.bin"
        action: Callable[[], object] = partial(shutil.rmtree, place.store)
        if what == "cut":
            action = partial(os.truncate, values, 1000)
        outcome = run("{train} TRAIN.EPOCHS 1 --output {root}/new", inject=partial(_at_third_read, action))
        assert outcome.code in (0, 2), outcome
        assert "Traceback" not in outcome.err, outcome
        assert what != "cut" or "has become shorter" in outcome.err, outcome

    return command


def _ends_well_or_in_a_sentence(_: Place, outcome: Outcome) -> None:
    assert outcome.code in (0, 2), outcome
    assert "Traceback" not in outcome.err, outcome


ROWS = [
    Fault("G8", "two trainings at once into one OUTPUT", _two_at_once, slow=True),
    Fault("U-ar2", "begun anew over an old training, killed, then the usual line", _begun_anew_and_killed),
    Fault("train-h22", "begun anew into the OUTPUT of an old training", _begun_anew, slow=True),
    Fault("U-left", "SIGKILL while a checkpoint is saved, then run again", _killed_while_saving),
    Fault("J1", "another SEED into a finished OUTPUT", "{train} SEED 7", refused("SEED: 0 -> 7"), _finished),
    *(
        Fault(case, f"metrics.jsonl {what}: resume", _resumes_with(lines, words), spoil=_metrics(change), slow=slow)
        for first, second, what, change, lines, words in _METRICS
        for case, slow in ((first, first != "U-met1"), (second, True))
    ),
    *(
        Fault(case, "metrics.jsonl is a folder", _RESUME, refused("metrics.jsonl"), _metrics_is_a_folder, slow=slow)
        for case, slow in (("U-met4", False), ("train-h16", True))
    ),
    *(
        Fault(case, "64 bytes of the newest checkpoint zeroed: resume", _RESUME, _zeroed, _zero_stretch, slow=slow)
        for case, slow in (("U-flip", False), ("train-h12", True))
    ),
    Fault(
        "train-h10",
        "the newest checkpoint is cut: the one before is continued from",
        _RESUME,
        works("ckpt_epoch_1.pth is broken", "continuing from", "ckpt_epoch_0.pth", _TO_THE_END),
        _cut("ckpt_epoch_1.pth"),
        slow=True,
    ),
    Fault(
        "train-h11",
        "all checkpoints are cut",
        _RESUME,
        refused("ckpt_epoch_1.pth", "broken"),
        _cut("ckpt_epoch_0.pth", "ckpt_epoch_1.pth"),
    ),
    Fault(
        "train-h21", "an empty checkpoint of epoch 10^20", _RESUME, works("9" * 20, _TO_THE_END), _absurd_epoch, True
    ),
    Fault("U-full4", "the disk is full before the first file", _full_before_the_first_file, slow=True),
    Fault("train-h7", "the disk is full while checkpoints are saved", _full_while_saving, slow=True),
    Fault("train-h8", "... again, on the full disk", partial(_full_while_saving, times=2), slow=True),
    Fault("train-h9", "... with room made", partial(_full_while_saving, room=True), slow=True),
    Fault("U-shm", "NUM_WORKERS 2 with a /dev/shm of 1 MB, as in a container", _cramped(timeout=40), slow=True),
    Fault("U-shm2", "... which is full only once it trains", _cramped(hide=True, timeout=120), slow=True),
    Fault(
        "U-wk",
        "an image-reading process is killed",
        "{train} DATA.NUM_WORKERS 1 --output {root}/new",
        refused("process that reads images", "NUM_WORKERS"),
        slow=True,
        options={"inject": _readers_die},
    ),
    Fault(
        "EIO3",
        "EIO while records are read",
        "{train} --output {root}/new",
        refused(".bin", "cannot be read", "Input/output error"),
        slow=True,
        options={"inject": _no_reading},
    ),
    Fault(
        "train-h1",
        "OUTPUT is read-only",
        _RESUME,
        refused("Cannot write", "training"),
        lambda place: place.training.chmod(0o555),
        options={"unprivileged": True},
    ),
    Fault(
        "train-h5",
        "all embeddings hold NaN, with the right checksums",
        "{train} --output {root}/new",
        refused("finite"),
        _all_nan,
        slow=True,
    ),
    Fault(
        "train-h6",
        "an embedding of each shard holds NaN: the run goes on and says so",
        "{train} TRAIN.EPOCHS 1 --output {root}/new",
        works("not finite", "done"),
        _one_nan,
        slow=True,
    ),
    Fault("train-h18", "log_rank0.txt is a folder", _NEW, refused("Cannot write"), _folder_named("log_rank0.txt")),
    Fault(
        "train-h19", "config.json is a folder", _NEW, refused("config.json"), _folder_named("config.json"), slow=True
    ),
    Fault(
        "train-h20",
        "a checkpoint is a folder",
        _NEW,
        refused("ckpt_epoch_0.pth"),
        _folder_named("ckpt_epoch_0.pth"),
        True,
    ),
    Fault(
        "train-h23",
        "ulimit -n 40",
        f"{_NEW} TRAIN.EPOCHS 1 DATA.NUM_WORKERS 2",
        _ends_well_or_in_a_sentence,
        slow=True,
        options={"inject": _few_files},
    ),
    Fault(
        "train-h24",
        "an image was deleted after the export",
        "{train} TRAIN.EPOCHS 1 --output {root}/new",
        works("11 training", "done"),
        _image_gone,
        slow=True,
    ),
    Fault("train-h25", "values.bin is cut while it is read", _while_training("cut"), slow=True),
    Fault("train-h26", "the store is removed while it is read", _while_training("removed"), slow=True),
    Fault("train-h27", "--dry-run -1", "{train} --dry-run -1 --output {root}/new", refused("-1"), slow=True),
    Fault("train-h28", "--accumulation-steps 0", "{train} --accumulation-steps 0", refused("0"), slow=True),
    Fault(
        "train-h29",
        "WARMUP_EPOCHS and BASE_LR of 1e308",
        "{train} TRAIN.WARMUP_EPOCHS 1e308 TRAIN.BASE_LR 1e308",
        refused("WARMUP_EPOCHS"),
        slow=True,
    ),
    Fault("train-h30", "OUTPUT a[/nope]b", _bracketed, slow=True),
    Fault("train-h31", "no store: what is left in a new OUTPUT", _fails_at_once),
    Fault("train-h32", "into the OUTPUT of the export", _into_the_exports_output, slow=True),
    Fault(
        "train-h33",
        "a checkpoint of one process continued by two",
        "{train} --dry-run 2",
        refused("images a step: 2 -> 4"),
        _finished,
        slow=True,
    ),
    Fault(
        "train-h34",
        "the val split is missing",
        "{train} TRAIN.EPOCHS 1 DATA.NUM_SAMPLES 2 --output {root}/new",
        works("val split has no images", "done"),
        _split_gone("val"),
        slow=True,
    ),
    Fault(
        "train-h35",
        "the train split is missing",
        "{train} --output {root}/new",
        refused("no training images"),
        _split_gone("train"),
        slow=True,
    ),
    Fault(
        "train-h36",
        "a batch of 1000 on 3 images",
        "{train} TRAIN.EPOCHS 1 DATA.NUM_SAMPLES 3 --batch-size 1000 --output {root}/new",
        works("done"),
        slow=True,
    ),
    Fault(
        "train-h37",
        "a batch of 1, with BatchNorm",
        "{train} TRAIN.EPOCHS 1 DATA.NUM_SAMPLES 2 --batch-size 1 --output {root}/new",
        works("done"),
        slow=True,
    ),
    Fault(
        "train-h38",
        "all training images are broken",
        "{train} TRAIN.EPOCHS 1 --output {root}/new",
        _ends_well_or_in_a_sentence,
        _all_broken,
        slow=True,
    ),
    Fault(
        "new-train-1",
        "OUTPUT on a file system without locks",
        _NEW,
        refused("cannot be locked", "No locks available", "local disk"),
        options={"inject": no_locks},
    ),
    Fault(
        "U-swap2",
        "two images have swapped names since the export",
        "{train} TRAIN.EPOCHS 1 DATA.NUM_SAMPLES 2 --output {root}/new",
        _both_named,
        _swap,
    ),
    Fault(
        "new-train-2",
        "killed while an image-reading process is there, and run again",
        _killed_leaves_no_lock,
        slow=True,
    ),
    Fault("new-train-3", "--resume of an earlier checkpoint of the same OUTPUT", _went_back, slow=True),
    Fault(
        "new-train-4",
        "OUTPUT holds the checkpoints of two trainings, as the first release left it",
        _RESUME,
        refused("checkpoint of epoch 1", "metrics.jsonl", "--resume"),
        _last_epoch_is_of_another,
    ),
]
