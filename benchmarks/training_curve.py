"""What more epochs bring: a training's errors on the validation images and its masks, epoch by epoch.

    python benchmarks/training_curve.py RUN --output curve.png

RUN is the folder of a training that probed its masks (`PROBE.DECODER`).
"""

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from efficientsam3.checkpoints.training import METRICS_NAME
from efficientsam3.evaluate.report.figures import write_figure
from efficientsam3.train.metrics import read_metrics

PANELS = {
    "error": {"val/relative_mse": "relative MSE", "val/cosine": "1 - cosine"},
    "box mIoU": {"probe/teacher_box_miou": "teacher", "probe/box_miou": "student", "probe/box_agreement": "agreement"},
}


def main() -> None:
    """Draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--output", type=Path, required=True, metavar="PNG")
    args = parser.parse_args()
    epochs = read_metrics(args.run / METRICS_NAME)
    figure = Figure(figsize=(8, 3), dpi=120, layout="constrained")
    for axes, (title, names) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for name, label in names.items():
            axes.plot(
                [record["epoch"] + 1 for record in epochs], [record[name] for record in epochs], "o-", label=label
            )
        axes.set(title=title, xlabel="epochs", ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
    write_figure(args.output, figure)


if __name__ == "__main__":
    main()
