"""Trials of trainings: every row of a table trained and its masks measured, one after the other, into one table.

    python benchmarks/trials.py benchmarks/trials.yaml --out trials --set data=photos measured=photos \
      store=teacher/embeddings decoder=sam.onnx [--only NAME ...] [--seeds 0 1] [--dry-run]

The file has what all rows share, and the rows:

    train: --cfg stage1/configs/es_ev_s.yaml --data-path $data --batch-size 2   # of `efficientsam3 train`
    opts: {DISTILL.TEACHER_EMBED_PATH: $store, TRAIN.EPOCHS: 5}                 # its --opts, by key
    evaluate: --data $measured --max-objects 4                                      # of `efficientsam3 evaluate`
    teacher: $store
    decoder: $decoder
    seeds: [0]
    rows:
      plain: {}
      gradient: {opts: {DISTILL.TERMS.gradient: 1.0}}
      loop: {train: --decoder $decoder, seeds: [0, 1]}

A row's flags follow those of all rows, its options replace those of the same key. The same command goes on where it was
stopped (SIGTERM, SIGINT) or killed: trainings resume, rows that are done are skipped, and those that failed are tried
again. OUT/NAME-seedN has each row's training, masks, logs and row.json; OUT/trials.md is the table of all rows, with
what failed and why. CPU seconds are those of the training's processes, over all attempts.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from string import Template
from types import FrameType
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from efficientsam3.checkpoints.training import METRICS_NAME, checkpoint_path, load_training_checkpoint
from efficientsam3.config.load import read_yaml
from efficientsam3.evaluate.masks.comparison import compare
from efficientsam3.evaluate.masks.objects import PromptKind
from efficientsam3.evaluate.masks.scores import ObjectScore
from efficientsam3.evaluate.run import RESULTS_NAME
from efficientsam3.runtime.endings import run_to_the_end
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import write_json, write_text
from efficientsam3.runtime.json_files import parse, read_json_object
from efficientsam3.runtime.signals import handled
from efficientsam3.train.metrics import read_metrics

COMMAND = (sys.executable, "-c", "import sys; from efficientsam3.cli import main; sys.exit(main())")
BASELINE = "zeros"
PROMPTS: tuple[PromptKind, ...] = ("box", "point")
_STUDENT = "$student"
RECORD_NAME = "row.json"
TABLE_NAME = "trials.md"
_REMEDY = "see the top of benchmarks/trials.py for what it holds"
Value = bool | int | float | str | None


class Row(BaseModel):
    """A row of the table."""

    model_config = ConfigDict(extra="forbid")

    train: str = ""  # flags
    opts: dict[str, Value] = Field(default_factory=dict)
    seeds: list[int] | None = None


class Trials(BaseModel):
    """The file: what all rows share, and the rows."""

    model_config = ConfigDict(extra="forbid")

    train: str
    opts: dict[str, Value] = Field(default_factory=dict)
    evaluate: str
    teacher: str
    decoder: str
    seeds: list[int] = Field(default=[0], min_length=1)
    rows: dict[str, Row] = Field(min_length=1)


@dataclass(frozen=True)
class Trial:
    """A row with one seed."""

    name: str
    seed: int
    folder: Path
    train: tuple[str, ...]  # arguments of `efficientsam3`
    evaluate: tuple[str, ...]  # likewise; `$student` stands for the checkpoint

    @property
    def run(self) -> Path:
        """The training's folder."""
        return self.folder / "run"

    def record(self) -> dict[str, Any] | None:
        """What is known of it; None before it was tried."""
        path = self.folder / RECORD_NAME
        return read_json_object(path, "delete it, the row is then measured again") if path.exists() else None


@dataclass
class Stop:
    """Whether to end, and which process is told so."""

    requested: bool = False
    process: "subprocess.Popen[bytes] | None" = None
    numbers: tuple[int, ...] = field(default=(signal.SIGTERM, signal.SIGINT))

    def note(self, _number: int, _frame: FrameType | None) -> None:
        """Pass it on: a training saves and ends."""
        self.requested = True
        if self.process is not None:
            self.process.terminate()


def read_trials(
    path: Path, out: Path, values: Mapping[str, str], only: Sequence[str] = (), seeds: Sequence[int] = ()
) -> list[Trial]:
    """The rows of a file with each of their seeds, in order.

    Args:
        path: the file.
        out: where rows have their folders.
        values: what stands for `$name` in it.
        only: names of the rows to take; all where there are none.
        seeds: instead of the file's.

    Raises:
        UserError: the file is not readable, a key or value is wrong, a `$name` has no value, or there is no such row.
    """
    trials = parse(Trials, read_yaml(path), f"Trials {path}", _REMEDY)
    unknown = sorted(set(only) - trials.rows.keys())
    if unknown:
        raise UserError(f"Trials {path} has no row {unknown[0]!r}: use {', '.join(trials.rows)}.")

    def filled(text: str) -> str:
        try:
            return Template(text).substitute(values)
        except (KeyError, ValueError) as error:
            raise UserError(f"Trials {path}: {text!r} lacks a value ({error}): give it as --set NAME=VALUE.") from error

    def flags(text: str) -> list[str]:
        return [filled(word) for word in shlex.split(text)]

    found = []
    for name, row in trials.rows.items():
        opts = {key: filled(_text(value)) for key, value in (trials.opts | row.opts).items()}
        for seed in (seeds or row.seeds or trials.seeds) if name in only or not only else ():
            folder = out / f"{name}-seed{seed}"
            pairs = [word for pair in (opts | {"SEED": str(seed)}).items() for word in pair]
            train = ["train", *flags(trials.train), *flags(row.train), "--output", os.fspath(folder / "run")]
            models = [f"teacher={filled(trials.teacher)}", f"student={_STUDENT}", BASELINE]
            evaluate = ["evaluate", *models, "--decoder", filled(trials.decoder), *flags(trials.evaluate)]
            evaluate += ["--out", os.fspath(folder / "masks")]
            found.append(Trial(name, seed, folder, (*train, "--opts", *pairs), tuple(evaluate)))
    return found


def _text(value: Value) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def check_unchanged(trials: Sequence[Trial]) -> None:
    """Refuse rows that were tried with other options.

    Raises:
        UserError: there is one.
    """
    for trial in trials:
        record = trial.record()
        if record is not None and tuple(record["train"]) != trial.train:
            raise UserError(
                f"{trial.folder} holds a trial with other options ({shlex.join(record['train'])}): give the row "
                "another name, or delete that folder."
            )


def run_trial(trial: Trial, stop: Stop, command: Sequence[str] = COMMAND) -> None:
    """Train and measure, or go on with that; what came out, or what failed, is written to row.json.

    Args:
        trial: what to train.
        stop: whether to end early.
        command: what `efficientsam3` is.
    """
    record = trial.record() or {"name": trial.name, "seed": trial.seed, "train": trial.train, "cpu_s": {}}
    if record.get("done"):
        return
    record.pop("failed", None)
    trial.folder.mkdir(parents=True, exist_ok=True)

    def attempt(stage: str, *arguments: str) -> bool:
        # Counted before it begins, so that an attempt that dies with this process is known to be missing.
        record["lost_attempts"] = record.get("lost_attempts", 0) + 1
        write_json(trial.folder / RECORD_NAME, record)
        sentence, seconds = _call([*command, *arguments], trial.folder / f"{stage}.log", stop)
        record["cpu_s"][stage] = record["cpu_s"].get(stage, 0) + seconds
        record["lost_attempts"] -= 1
        if sentence and not stop.requested:
            record["failed"] = sentence
        return not sentence and not stop.requested

    if attempt("train", *trial.train) and _is_trained(trial):
        student = checkpoint_path(trial.run, len(read_metrics(trial.run / METRICS_NAME)) - 1)
        record |= _of_training(trial, student)
        if attempt("evaluate", *(word.replace(_STUDENT, os.fspath(student)) for word in trial.evaluate)):
            record |= {"masks": _masks(trial), "done": True}
    write_json(trial.folder / RECORD_NAME, record)


def _call(command: Sequence[str], log: Path, stop: Stop) -> tuple[str, float]:
    """Run a command with one thread: what it said last if it failed, else nothing; and CPU seconds of its processes."""
    with log.open("ab") as output:
        begun = output.tell()
        # A session of its own: Ctrl+C reaches this process alone, which passes on what ends a training in order.
        stop.process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        if stop.requested:
            stop.process.terminate()
        _, status, usage = os.wait4(stop.process.pid, 0)  # with the children that it waited for
        stop.process.returncode = code = os.waitstatus_to_exitcode(status)
        stop.process = None
    lines = log.read_bytes()[begun:].decode(errors="replace").splitlines()
    said = next((line.strip() for line in reversed(lines) if line.strip()), "")
    seconds = usage.ru_utime + usage.ru_stime
    if code < 0:
        return f"ended by {signal.Signals(-code).name}", seconds
    return (said or f"exit code {code}") if code else "", seconds


def _is_trained(trial: Trial) -> bool:
    """Whether all epochs are over; a training that was told to end has ended well without."""
    config, metrics = trial.run / "config.json", trial.run / METRICS_NAME
    if not config.exists() or not metrics.exists():
        return False
    epochs: int = read_json_object(config, "delete the folder")["TRAIN"]["EPOCHS"]
    return len(read_metrics(metrics)) == epochs


def _of_training(trial: Trial, student: Path) -> dict[str, Any]:
    epochs, content = read_metrics(trial.run / METRICS_NAME), load_training_checkpoint(student)
    last = epochs[-1]
    return {
        "parameters": sum(moments["exp_avg"].numel() for moments in content["optimizer"]["state"].values()),
        "images_seen": content["images"] * len(epochs),
        "steps": content["step"],
        "relative_mse": last.get("val/relative_mse"),
        "cosine": last.get("val/cosine"),
    }


def _masks(trial: Trial) -> dict[str, Any]:
    results = read_json_object(trial.folder / "masks" / RESULTS_NAME, "delete it", limit=1 << 30)
    return {f"{row['model']} {row['prompt']}": row for row in results["summary"]}


def render_table(trials: Sequence[Trial]) -> str:
    """The rows so far as Markdown: the teacher and zeros, each row and the mean over its seeds, then the commands."""
    records = [(trial, trial.record() or {}) for trial in trials]
    done = [(trial, record) for trial, record in records if record.get("done")]
    lines = [
        "| trial | seed | parameters | images seen | CPU min | relative MSE | 1 - cosine | box | of teacher | point "
        "| of teacher | box, beyond the first row | point |",
        "|" + "---|" * 13,
    ]
    for baseline in ("teacher", BASELINE) if done else ():
        lines.append(_line(baseline, *[""] * 6, *_mask_cells(done[0][1], baseline)))
    beyond = _beyond_first([trial for trial, _ in done], trials[0].name)
    for trial, record in records:
        lines.append(_row_line(trial, record, beyond.get(trial.folder, ["", ""])))
        same = [each for other, each in done if other.name == trial.name]
        if len(same) > 1 and record is same[-1]:
            lines.append(_mean_line(trial.name, same))
    lines += ["", "Shares of the teacher and differences with 95 % intervals over images. Commands:", ""]
    lines += [f"    efficientsam3 {shlex.join(trial.train)}" for trial, record in records if record]
    return "\n".join(lines) + "\n"


def _row_line(trial: Trial, record: Mapping[str, Any], beyond: Sequence[str]) -> str:
    if "failed" in record:
        return _line(trial.name, str(trial.seed), f"failed: {record['failed'].replace('|', '/')}", *[""] * 10)
    if not record.get("done"):
        return _line(trial.name, str(trial.seed), "not finished" if record else "not run", *[""] * 10)
    cpu = f"{record['cpu_s']['train'] / 60:.1f}"
    cells = [
        str(trial.seed),
        f"{record['parameters']:,}",
        f"{record['images_seen']:,}",
        f"at least {cpu}" if record["lost_attempts"] else cpu,
        _number(record["relative_mse"]),
        _number(record["cosine"]),
    ]
    return _line(trial.name, *cells, *_mask_cells(record, "student"), *beyond)


def _mean_line(name: str, records: Sequence[Mapping[str, Any]]) -> str:
    def mean(values: Iterator[float | None]) -> str:
        known = [value for value in values if value is not None]
        return _number(fmean(known)) if known else ""

    masks = [
        cell
        for prompt in PROMPTS
        for cell in (
            mean(each["masks"][f"student {prompt}"]["miou"] for each in records),
            f"{100 * fmean(each['masks'][f'student {prompt}']['share'] or 0 for each in records):.1f} %",
        )
    ]
    cpu = f"{fmean(each['cpu_s']['train'] for each in records) / 60:.1f}"
    features = [mean(each[key] for each in records) for key in ("relative_mse", "cosine")]
    return _line(name, f"mean of {len(records)}", "", "", cpu, *features, *masks, "", "")


def _mask_cells(record: Mapping[str, Any], model: str) -> list[str]:
    cells = []
    for prompt in PROMPTS:
        row = record["masks"].get(f"{model} {prompt}", {})
        share, interval = row.get("share"), row.get("share_interval")
        between = f" ({100 * interval[0]:.0f} to {100 * interval[1]:.0f})" if interval else ""
        cells += [_number(row.get("miou")), "" if share is None else f"{100 * share:.1f} %{between}"]
    return cells


def _beyond_first(done: Sequence[Trial], name: str) -> dict[Path, list[str]]:
    """By folder, how much higher the mIoU is by box and point than that of the row `name` with the same seed.

    Rows are measured on the same objects, so that differences are paired.
    """
    first = {trial.seed: trial for trial in done if trial.name == name}
    scores = {trial.folder: list(_scores(trial)) for trial in done}
    found = {}
    for trial in done:
        before = first.get(trial.seed)
        if before is None or trial.name == name:
            continue
        names = [os.fspath(each.folder) for each in (before, trial)]
        both = [*scores[before.folder], *scores[trial.folder]]
        differences = {each.prompt: each for each in compare(both, names, PROMPTS)[1]}
        found[trial.folder] = [_difference(differences.get(prompt)) for prompt in PROMPTS]
    return found


def _scores(trial: Trial) -> Iterator[ObjectScore]:
    results = read_json_object(trial.folder / "masks" / RESULTS_NAME, "delete it", limit=1 << 30)
    for image_id, rows in results["images"].items():
        for row in rows:
            if row["model"] == "student":
                yield ObjectScore(**row | {"model": os.fspath(trial.folder), "image_id": image_id})


def _difference(found: Any) -> str:
    if found is None:
        return ""
    between = "" if found.interval is None else f" ({found.interval[0]:+.3f} to {found.interval[1]:+.3f})"
    return f"{found.difference:+.3f}{between}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _line(*cells: str) -> str:
    padded = [*cells, *[""] * (13 - len(cells))]
    return f"| {' | '.join(padded)} |"


def _all_tried(path: Path, out: Path, values: Mapping[str, str]) -> list[Trial]:
    """The rows of a file, with further seeds that they were tried with."""
    planned = read_trials(path, out, values)
    numbers = {trial.seed for trial in planned}
    numbers |= {int(each.parent.name.rpartition("-seed")[2]) for each in out.glob(f"*-seed*/{RECORD_NAME}")}
    folders = {trial.folder for trial in planned}
    return [
        trial
        for trial in read_trials(path, out, values, seeds=sorted(numbers))
        if trial.folder in folders or trial.record() is not None
    ]


def run_trials(arguments: Sequence[str] | None = None, command: Sequence[str] = COMMAND) -> None:
    """What the top of this file describes.

    Raises:
        UserError: see `read_trials` and `check_unchanged`.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, metavar="YAML")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="what stands for $NAME in the file")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these rows alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], metavar="N", help="instead of the file's")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, and run nothing")
    args = parser.parse_args(arguments)
    values = {name: value for name, _, value in (each.partition("=") for each in args.set)}
    trials = read_trials(args.rows, args.out, values, args.only, args.seeds)
    if args.dry_run:
        for trial in trials:
            print(f"efficientsam3 {shlex.join(trial.train)}")
            print(f"efficientsam3 {shlex.join(trial.evaluate)}")
        return
    check_unchanged(trials)
    stop = Stop()
    with handled(stop.numbers, stop.note):
        for number, trial in enumerate(trials, start=1):
            if stop.requested:
                break
            began = time.monotonic()
            run_trial(trial, stop, command)
            write_text(args.out / TABLE_NAME, render_table(_all_tried(args.rows, args.out, values)))
            line = _row_line(trial, trial.record() or {}, ["", ""])
            print(f"[{number}/{len(trials)}, {time.monotonic() - began:.0f} s] {line}", flush=True)
    print(f"{'stopped; the same command goes on. ' if stop.requested else ''}{args.out / TABLE_NAME}")


if __name__ == "__main__":
    sys.exit(run_to_the_end("trials", run_trials))
