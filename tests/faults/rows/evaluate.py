"""Evaluations: which models, which runs, and where the report goes."""

from faults.fault import Expect, Fault, Outcome, Place, Run, refused, works
from faults.system import small_disk

_EVALUATE = "evaluate {merged} --data {data} --out {root}/report --max-images 1 --max-objects 1 --prompt box"


def _writes_the_report(place: Place, outcome: Outcome) -> None:
    works()(place, outcome)
    assert (place.root / "report/report.html").exists(), outcome


def _refused_or_works(*words: str) -> Expect:
    def check(place: Place, outcome: Outcome) -> None:
        (refused if outcome.code else works)(*words)(place, outcome)

    return check


def _out_is_a_file(place: Place) -> None:
    (place.root / "report").write_bytes(b"mine")


def _cut_metrics(place: Place) -> None:
    path = place.training / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0].replace("{", '{"loss/x": NaN, ', 1) + lines[1][:20])


def _cut_saco(place: Place) -> None:
    (place.root / "gold.json").write_text('{"images": [{"id": 1, "text_input": "a')


def _full_disk(place: Place, run: Run) -> None:
    with small_disk(place.root / "report", "8k") as disk:
        refused("report", "space")(place, run(_EVALUATE))
        assert not list(disk.glob("report.html")), "half a report is left"


ROWS = [
    Fault(
        "B14d",
        "markup in a model's name",
        "evaluate '[bold]x[/nope]={merged}' --data {data} --out {root}/report --max-images 1 --max-objects 1",
        works("[bold]x[/nope]"),
        slow=True,
    ),
    Fault("evaluate-h1", "--out is a file", _EVALUATE, refused("report"), _out_is_a_file, slow=True),
    Fault("evaluate-h2", "a model called =", "evaluate = --data {data} --out {root}/report", refused("="), slow=True),
    Fault(
        "evaluate-h3", "NAME= with nothing", "evaluate a= --data {data} --out {root}/report", refused("a="), slow=True
    ),
    Fault(
        "evaluate-h4",
        "random:nan and random:1e400",
        "evaluate random:nan random:1e400 --decoder {sam3} --data {data} --out {root}/report",
        refused("random:nan"),
        slow=True,
    ),
    Fault(
        "evaluate-h5",
        "--decoder is a training's checkpoint",
        "evaluate {student} --decoder {student} --data {data} --out {root}/report",
        refused("SAM3"),
        slow=True,
    ),
    Fault(
        "evaluate-h6",
        "--run on a folder whose metrics.jsonl is cut and has NaN",
        f"{_EVALUATE} --run {{training}}",
        _refused_or_works(),
        _cut_metrics,
        slow=True,
    ),
    Fault(
        "new-evaluate-1",
        "a SA-Co file that is cut",
        "evaluate {merged} --data {root}/gold.json --images {data} --prompt text --out {root}/report",
        refused("gold.json", "published format"),
        _cut_saco,
        slow=True,
    ),
    Fault(
        "new-evaluate-2",
        "--explain with one model",
        "evaluate {merged} --data {data} --out {root}/report --explain",
        refused("--explain"),
        slow=True,
    ),
    Fault(
        "new-evaluate-3",
        "--annotators with a folder",
        "evaluate {merged} --data {data} --annotators {root}/gold.json --out {root}/report",
        refused("--annotators"),
        slow=True,
    ),
    Fault("evaluate-h7", "the report onto a full disk", _full_disk, slow=True),
]
