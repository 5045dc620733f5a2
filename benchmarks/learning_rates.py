"""Which learning rate suits which batch: students trained on equal images, in several batches by several rates.

    python benchmarks/learning_rates.py --data DATA --store STORE --out OUT [--batches 2 8 32] \\
      [--rates 5e-4 1e-3 2e-3] [--epochs 2] [--small-epochs 0]

DATA is a dataset, STORE the teacher's embeddings of it. Every row trains the published head anew, from scratch, with
`NORMALIZE channel`; two images are computed at once, and `TRAIN.ACCUMULATION_STEPS` makes larger batches of them, so
that BatchNorm sees the same in all. OUT has a folder for each row: rows that are done are skipped, an interrupted one
goes on, and one with more rates or batches joins the others in the table. The best rate of a batch is printed bold.
"""

import argparse
import subprocess
from collections.abc import Iterator
from pathlib import Path

from efficientsam3.checkpoints.training import METRICS_NAME
from efficientsam3.train.metrics import read_metrics

AT_ONCE = 2  # images of a batch of the data loader


def main() -> None:
    """Train every row that is not done, and print the table of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DATA")
    parser.add_argument("--store", type=Path, required=True, metavar="STORE")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT")
    parser.add_argument("--cfg", type=Path, default=Path("stage1/configs/es_ev_s.yaml"))
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--small-epochs", type=int, default=0, help="first of them, on images of half the size")
    parser.add_argument("--warmup-epochs", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if wrong := [batch for batch in args.batches if batch < AT_ONCE or batch % AT_ONCE]:
        parser.error(f"--batches {wrong[0]} is not a multiple of {AT_ONCE}")
    for batch in args.batches:
        for rate in args.rates:
            output = args.out / f"seed{args.seed}-batch{batch}-rate{rate:g}"
            if result(output, args.epochs) is None:
                subprocess.run(command(args, batch, rate, output), check=True)
            print_table(args.out, args.epochs, args.seed)


def command(args: argparse.Namespace, batch: int, rate: float, output: Path) -> list[str]:
    """The training of a row. All that the configuration's defaults could change stands here."""
    options = {
        "MODEL.BACKBONE": "efficientvit_b0",
        "MODEL.HEAD": "published",
        "DISTILL.NORMALIZE": "channel",
        "DISTILL.TEACHER_EMBED_PATH": args.store,
        "TRAIN.EPOCHS": args.epochs,
        "TRAIN.SMALL_EPOCHS": args.small_epochs,
        "TRAIN.WARMUP_EPOCHS": args.warmup_epochs,
        "TRAIN.LR_SCALING": "none",
        "TRAIN.BASE_LR": rate,
        "TRAIN.MIN_LR": rate / 100,
        "TRAIN.KEEP_EPOCHS": 1,
        "TRAIN.SAVE_STEPS": max(1, 60 // batch),
        "DATA.NUM_WORKERS": 0,
        "SEED": args.seed,
    }
    start = ["efficientsam3", "train", "--cfg", str(args.cfg), "--data-path", str(args.data), "--output", str(output)]
    flags = ["--batch-size", str(AT_ONCE), "--accumulation-steps", str(batch // AT_ONCE), "--pretrained", "false"]
    return [*start, *flags, "--opts", *(str(word) for option in options.items() for word in option)]


def result(output: Path, epochs: int) -> float | None:
    """A row's relative MSE on the validation images; None where it is not done."""
    path = output / METRICS_NAME
    # Empty until the first epoch has ended.
    last = read_metrics(path)[-1] if path.is_file() and path.stat().st_size else None
    return None if last is None or last["epoch"] + 1 < epochs else last["val/relative_mse"]


def print_table(out: Path, epochs: int, seed: int) -> None:
    """Print a Markdown table: a row for each batch, a column for each rate."""
    found = {(batch, rate): error for batch, rate, error in done_rows(out, epochs, seed)}
    rates = sorted({rate for _, rate in found})
    print("| batch |", " | ".join(f"{rate:g}" for rate in rates), "|")
    print("|---" * (1 + len(rates)), end="|\n")
    for batch in sorted({batch for batch, _ in found}):
        errors = {rate: found[batch, rate] for rate in rates if (batch, rate) in found}
        best = min(errors.values())
        cells = {rate: f"**{error:.3f}**" if error == best else f"{error:.3f}" for rate, error in errors.items()}
        print(f"| {batch} |", " | ".join(cells.get(rate, "") for rate in rates), "|")


def done_rows(out: Path, epochs: int, seed: int) -> Iterator[tuple[int, float, float]]:
    """Batch, rate and relative MSE of every row that is done."""
    for output in out.glob(f"seed{seed}-batch*-rate*"):
        if (error := result(output, epochs)) is not None:
            batch, rate = output.name.split("-batch")[1].split("-rate")
            yield int(batch), float(rate), error


if __name__ == "__main__":
    main()
