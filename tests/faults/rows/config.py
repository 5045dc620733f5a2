"""Configurations: YAML files, --opts, and paths that cannot be."""

import os
from collections.abc import Callable
from dataclasses import replace

from faults.fault import Fault, Outcome, Place, Run, refused, works

LONG = "a" * 300  # more than a part of a path may have
LAUGHS = ["  l0: &l0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
LAUGHS += [f"  l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * 9)}]" for level in range(1, 12)]
BOUNDS = {"timeout": 30, "memory_gb": 3}


def _writes(text: str | bytes, name: str = "c.yaml") -> Callable[[Place], None]:
    def spoil(place: Place) -> None:
        content = text.encode() if isinstance(text, str) else text
        (place.root / name).write_bytes(content)

    return spoil


def _yaml(case: str, what: str, text: str | bytes, *words: str) -> Fault:
    """A configuration that holds `text` is refused."""
    return Fault(
        case, what, "train --cfg c.yaml --dry-run", refused("c.yaml", *words), _writes(text), options=dict(BOUNDS)
    )


def _opts(case: str, what: str, *pairs: str, words: tuple[str, ...] = ()) -> Fault:
    """--opts are refused, in a dry run."""
    line = "train --cfg {checkout}/stage1/configs/es_ev_s.yaml --dry-run --opts"
    return Fault(case, what, _line(line, *pairs), refused(*(words or pairs[:1])), options=dict(BOUNDS))


def _export(case: str, what: str, *pairs: str) -> Fault:
    """--opts are refused by a real run, which writes nothing."""
    return Fault(case, what, _line("{export}", *pairs), _nothing_written(pairs[0]), options=dict(BOUNDS))


def _line(line: str, *words: str) -> str:
    return " ".join((line, *(f"'{word}'" for word in words))).replace("{a", "{{a")


def _nothing_written(*words: str) -> Callable[[Place, Outcome], None]:
    def expect(place: Place, outcome: Outcome) -> None:
        refused(*words)(place, outcome)
        assert not (place.root / "teacher" / "embeddings").exists(), outcome

    return expect


def _fifo(place: Place) -> None:
    os.mkfifo(place.root / "c.yaml")


def _unreadable(place: Place) -> None:
    (place.root / "c.yaml").write_text("SEED: 1\n")
    (place.root / "c.yaml").chmod(0)


def _base_is_a_folder(place: Place) -> None:
    (place.root / "folder").mkdir()
    (place.root / "c.yaml").write_text("BASE: folder\n")


def _own_base(place: Place) -> None:
    (place.root / "folder").mkdir()
    (place.root / "c.yaml").write_text("BASE: folder/../c.yaml\n")


def _chain(place: Place) -> None:
    (place.root / "c.yaml").write_text("BASE: 0.yaml\n")
    for number in range(1500):
        (place.root / f"{number}.yaml").write_text(f"BASE: {number + 1}.yaml\n")


def _doubled(place: Place) -> None:
    (place.root / "c.yaml").write_text("BASE: [0.yaml, 0.yaml]\n")
    for number in range(25):
        (place.root / f"{number}.yaml").write_text(f"BASE: [{number + 1}.yaml, {number + 1}.yaml]\n")
    (place.root / "25.yaml").write_text("SEED: 1\n")


def _tag_leads_out(place: Place, run: Run) -> None:
    command = [*place.train, "--output", place.root / "below" / "training", "--tag", ".."]
    refused("TAG", "..")(place, run(command))
    assert not (place.root / "below").exists()


def _export_to_nul(place: Place, run: Run) -> None:
    cfg = place.checkout / "stage1/configs/teacher/sam_vit_huge_sa1b.yaml"
    where = ["--cfg", cfg, "--data-path", place.data, "--resume", place.sam3]
    refused("OUTPUT")(place, run(["export", *where, "--opts", *place.tiny, "OUTPUT", r'"a\0b"']))


def _all_of_no_use(place: Place, outcome: Outcome) -> None:
    refused()(place, outcome)
    for key in ("SEED", "PRINT_FREQ", "EPOCHS", "BASE_LR"):
        assert key in outcome.sentence, outcome


DRY = "train --cfg c.yaml --dry-run"
FILES = [
    Fault("P5", "--cfg unreadable", DRY, refused("c.yaml"), _unreadable, options={"unprivileged": True}),
    Fault("config-h1", "FIFO as --cfg", DRY, refused("c.yaml"), _fifo, options=dict(BOUNDS)),
    _yaml("Y1b", "billion laughs as DATA", "\n".join(["X:", *LAUGHS, "DATA: *l11"])),
    _yaml("Y1c", "billion laughs as SEED", "\n".join(["X:", *LAUGHS, "SEED: *l11"])),
    _yaml("config-h2", "billion laughs (unknown keys)", "\n".join(["FROBNICATE:", *LAUGHS])),
    _yaml("config-h3", "a command of Python's", "SEED: !!python/object/apply:os.system ['touch pwned']"),
    _yaml("Y3", "BASE: 5", "BASE: 5", "BASE"),
    _yaml("Y3b", "BASE: [1]", "BASE: [1]", "BASE"),
    _yaml("Y3c", "BASE: null", "BASE:", "BASE"),
    Fault("config-h4", "BASE: {a: b}", DRY, refused(), _writes("BASE: {a: b}")),
    Fault("config-h7", "BASE: empty string", DRY, refused("is not a file"), _writes("BASE: ''")),
    Fault("config-h5", "BASE: a folder", DRY, refused("folder"), _base_is_a_folder),
    Fault("config-h6", "BASE: its own file by another path", DRY, refused("BASE"), _own_base),
    Fault("Y4", "a chain of 1500 BASE files", DRY, refused("c.yaml", "BASE"), _chain, options=dict(BOUNDS)),
    Fault("Y4b", "one BASE file twice, 25 levels", DRY, refused("c.yaml", "BASE"), _doubled, options=dict(BOUNDS)),
    _yaml("Y5", "10000 nested brackets", "SEED: " + "[" * 10_000),
    _yaml("Y6", "a timestamp that is no date", "SEED: 2024-13-45", "SEED"),
    _yaml("Y7", "0b_ as a number", "SEED: 0b_", "0b_"),
    _yaml("Y7b", "an integer of 5000 digits", "SEED: " + "9" * 5000),
    _yaml("config-h8", "NUL in OUTPUT", 'OUTPUT: "a\\0b"'),
    _yaml("config-h9", "NUL in DATA_PATH", 'DATA: {DATA_PATH: "a\\0b"}'),
    _yaml("config-h10", "integer keys", "1: 2\n3: 4"),
    _yaml("config-h11", "a list as a key", "[1, 2]: 3"),
    _yaml("config-h12", "NaN and inf", "TRAIN: {BASE_LR: .nan, MIN_LR: .inf}", "BASE_LR", "MIN_LR"),
    _yaml("config-h13", "an alias within what it repeats", "DATA: &a {BATCH_SIZE: *a}"),
    Fault(
        "config-h14",
        "negative and zero numbers",
        DRY,
        _all_of_no_use,
        _writes("SEED: -1\nPRINT_FREQ: 0\nTRAIN: {EPOCHS: -3, BASE_LR: 0}\n"),
    ),
    _yaml(
        "config-h15",
        "texts for numbers, dates for paths",
        "SEED: many\nOUTPUT: [2024-11-28]\nDATA: {DATA_PATH: 2024-11-28}",
        "SEED",
        "OUTPUT",
    ),
    _yaml("config-h16", "TAG ../../x", "TAG: ../../x", "TAG"),
    _yaml("config-h17", "TAG ..", "TAG: ..\nMODEL: {BACKBONE: efficientvit_b0}", "TAG"),
    _yaml("config-h18", "a section twice", "DATA: {NUM_WORKERS: 0}\nDATA: {BATCH_SIZE: 0}", "DATA"),
    _yaml("config-h19", "UTF-16", "SEED: 1\n".encode("utf-16")),
    _yaml("config-h20", "UTF-16 without a mark", "SEED: 1\n".encode("utf-16-le")),
    _yaml("config-h21", "binary", bytes(range(256)) * 40),
]
OPTS = [
    Fault(
        "O2",
        "--opts OUTPUT 2024-13-45, which is no date but may be a folder's name",
        "export --cfg {checkout}/stage1/configs/teacher/sam_vit_huge_sa1b.yaml --data-path {data} --resume {sam3} "
        "--dry-run --opts {tiny} OUTPUT 2024-13-45",
        works(),
    ),
    _opts("O3", "--opts SEED [[[[", "SEED", "[" * 10_000),
    _opts("config-h22", "--opts SEED", "SEED"),
    _opts("config-h23", "--opts DATA.BATCH_SIZE.X 1", "DATA.BATCH_SIZE.X", "1", words=("BATCH_SIZE",)),
    _opts("config-h24", "--opts 1", "1"),
    _opts("config-h25", "--opts .. 1", "..", "1", words=("key",)),
    _opts("config-h26", "--opts DATA 5", "DATA", "5"),
    _opts("config-h27", "--opts DATA.BATCH_SIZE 1e400", "DATA.BATCH_SIZE", "1e400"),
    Fault(
        "config-h28",
        "BATCH_SIZE 99999999999999999999 (dry run)",
        f"{{train}} --dry-run --batch-size {'9' * 20}",
        refused("batch"),
    ),
    Fault(
        "config-h29",
        "CODEC pca9..9-int8",
        "{export} DISTILL.CODEC pca99999999999999999999-int8",
        _nothing_written("codec"),
    ),
    _opts("config-h30", "--opts OUTPUT with NUL", "OUTPUT", r'"a\0b"'),
    _export("config-h31", "DISTILL.EMBED_SIZE 1000000000 (dry run)", "DISTILL.EMBED_SIZE", "1000000000"),
    Fault("O11b", "a real run with NUL in OUTPUT", _export_to_nul),
    Fault("config-h35", "BATCH_SIZE 99999999999999999999", f"{{export}} --batch-size {'9' * 20}", refused("batch")),
    _export("config-h36", "CODEC of a giant number", "DISTILL.CODEC", "pca99999999999999999999-in"),
    _export("config-h37", "EMBED_SIZE 1000000000", "DISTILL.EMBED_SIZE", "1000000000"),
    Fault("config-h38", "BATCH_SIZE 1000000000", "{export} --batch-size 1000000000", works()),
]
PATHS = [
    Fault(
        "O13",
        "--data-path of 300 characters",
        f"export --cfg {{checkout}}/stage1/configs/teacher/sam_vit_huge_sa1b.yaml --data-path {LONG} --dry-run",
        refused(LONG[:50]),
    ),
    Fault("O13b", "--cfg of 300 characters", f"train --cfg {LONG}", refused("--cfg")),
    Fault("O13d", "an image's path of 300 characters", f"predict {{merged}} {LONG} --point 3 3", refused(LONG[:50])),
    Fault("O13e", "a store's path of 300 characters", f"store info {LONG}", refused(LONG[:50])),
    Fault("O13f", "a dataset's path of 300 characters", f"data check {LONG}", refused(LONG[:50])),
    Fault(
        "O13g",
        "--output of 300 characters: merge",
        f"merge --student-ckpt {{student}} --sam3-ckpt {{sam3}} --output {LONG}",
        refused(LONG[:50]),
    ),
    Fault(
        "config-h32", "a model's path of 300 characters", f"predict {LONG} {{image}} --point 3 3", refused(LONG[:50])
    ),
    Fault("Z9", "train --tag .. writes beside OUTPUT", _tag_leads_out),
]
SIZES = [
    Fault("config-h33", "--batch-size 1000000 on 12 images", "{train} --batch-size 1000000", works(), slow=True),
    Fault("config-h34", "NUM_WORKERS 100000 (dry run)", "{train} DATA.NUM_WORKERS 100000 --dry-run", works()),
]
# The others lose no data.
ORDINARY = {"Z9", "Y1b", "Y4b", "Y7b", "O3", "O11b", "O13g"}
ROWS = [replace(row, slow=row.case not in ORDINARY) for row in (*FILES, *OPTS, *PATHS, *SIZES)]
