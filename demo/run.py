"""The main job end to end, by the commands that a user runs, with a teacher small enough for two CPU cores.

    python demo/run.py [--output DIR]

Everything is generated: a dataset of the example images in scikit-image's and scikit-learn's wheels, and a random SAM3
in sam3.pt's layout.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from efficientsam3.checkpoints.training import METRICS_NAME, checkpoint_path
from efficientsam3.data.layouts import list_images
from efficientsam3.evaluate.report.features import feature_pairs
from efficientsam3.evaluate.report.figures import feature_figure, loss_figure, write_figure
from efficientsam3.models.student_files import load_trained_student
from efficientsam3.runtime.launch import own_path
from efficientsam3.store.reader import EmbeddingStore
from efficientsam3.testing.sample_images import write_sample_images
from efficientsam3.testing.tiny_sam3 import TinySam3, write_tiny_sam3
from efficientsam3.train.metrics import read_metrics
from efficientsam3.train.plan import paired_images
from efficientsam3.train.targets import StoredTargets

REPOSITORY = Path(__file__).resolve().parents[1]
TEACHER = TinySam3(grid=24)
TRAIN_IMAGES, VAL_IMAGES, EPOCHS = 48, 8, 10
MERGED = Path("merged") / "efficient_sam3.pt"
WARNING = "This teacher is random: its features are colours and edges, and its masks mean nothing."
CLOSING = """For the real one, change two things:
  1. the checkpoint: --resume (and --sam3-ckpt) name SAM3's own sam3.pt, see the README for how to get it;
  2. the data: DATA_PATH names SA-1B or your own images, see data/reorg_sa1b.py.
Then leave out --only-cpu, --pretrained false and all --opts but DISTILL.TEACHER_EMBED_PATH: a real training's settings
are the defaults."""


@dataclass
class Demo:
    """Where the demo writes, and how long its steps took."""

    output: Path
    console: Console
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, step: str, command: str) -> None:
        """Print a command and run it; the demo ends where it fails."""
        self.console.print(f"\n[bold]{step}[/bold]")
        self.console.print(f"$ {command}", style="cyan", markup=False, highlight=False, soft_wrap=True)
        started = time.monotonic()
        code = subprocess.run(
            shlex.split(command), cwd=REPOSITORY, env=_environment(self.console), check=False
        ).returncode
        self.seconds[step] = time.monotonic() - started
        if code != 0:
            sys.exit(f"The demo stopped: the command above returned {code}.")


def _environment(console: Console) -> dict[str, str]:
    """This interpreter's commands first, log lines as wide as this terminal, and no model hub."""
    return {**os.environ, "PATH": own_path(), "COLUMNS": str(console.width), "HF_HUB_OFFLINE": "1"}


def prepare(demo: Demo) -> None:
    """Write the images and the teacher, and remove an earlier demo's output."""
    demo.console.print(f"\n[bold]prepare[/bold]\nimages and a small random SAM3 in {demo.output}")
    started = time.monotonic()
    for name in ("photographs", "teacher", "student", "merged", "masks"):
        shutil.rmtree(demo.output / name, ignore_errors=True)
    write_sample_images(demo.output / "photographs", TRAIN_IMAGES, VAL_IMAGES)
    write_tiny_sam3(demo.output / "teacher" / "tiny_sam3.pt", tiny=TEACHER)
    demo.seconds["prepare"] = time.monotonic() - started


def run_commands(demo: Demo) -> None:
    """Embed, train, merge and predict."""
    out = shlex.quote(str(demo.output))
    demo.run(
        "embed",
        f"bash stage1/scripts/save_stage1_embeddings.sh CFG=stage1/configs/teacher/sam_vit_huge_sa1b.yaml "
        f"DATA_PATH={out}/photographs OUTPUT={out}/teacher GPUS=2 --resume {out}/teacher/tiny_sam3.pt --only-cpu "
        f"--opts DATA.NUM_WORKERS 0",
    )
    demo.run(
        "train",
        f"bash stage1/scripts/train_stage1_student.sh CFG=stage1/configs/es_ev_s.yaml DATA_PATH={out}/photographs "
        f"OUTPUT={out}/student BATCH_SIZE=2 GPUS=2 --pretrained false --only-cpu --opts "
        f"DISTILL.TEACHER_EMBED_PATH {out}/teacher/embeddings DATA.NUM_WORKERS 0 SAVE_FREQ {EPOCHS} "
        f"TRAIN.EPOCHS {EPOCHS} TRAIN.WARMUP_EPOCHS 1 TRAIN.BASE_LR 3e-3 TRAIN.LR_SCALING none",
    )
    demo.run(
        "merge",
        f"python stage1/convert_stage1_weights.py --student-ckpt {out}/student/ckpt_epoch_{EPOCHS - 1}.pth "
        f"--sam3-ckpt {out}/teacher/tiny_sam3.pt --output {out}/{MERGED} "
        "--target-prefix detector.backbone.vision_backbone.trunk.model. "
        "--replace-prefix detector.backbone.vision_backbone.trunk.",
    )
    image = _first_validation_image(demo.output)
    width, height = _size(demo.output, image)
    demo.run(
        "predict",
        f"efficientsam3 predict {out}/{MERGED} {out}/photographs/images/val/{image}.jpg "
        f"--point {width // 2} {height // 2} --device cpu --out {out}/masks",
    )


def _first_validation_image(output: Path) -> str:
    return list_images(output / "photographs", "val").id(0)


def _size(output: Path, image: str) -> tuple[int, int]:
    record = json.loads((output / "photographs" / "annotations" / "val" / f"{image}.json").read_text())["image"]
    return record["width"], record["height"]


def draw(demo: Demo) -> None:
    """Draw the features and the loss curves."""
    student = load_trained_student(checkpoint_path(demo.output / "student", EPOCHS - 1))
    store = EmbeddingStore(demo.output / "teacher" / "embeddings")
    targets = StoredTargets(store)
    images = paired_images(list_images(demo.output / "photographs", "val"), targets)
    write_figure(demo.output / "features.png", feature_figure(feature_pairs(student, targets, images, count=4)))
    write_figure(demo.output / "loss.png", loss_figure(read_metrics(demo.output / "student" / METRICS_NAME)))


def summarise(demo: Demo) -> None:
    """Print what was done, where the files are, and what they mean."""
    first, *_, last = read_metrics(demo.output / "student" / METRICS_NAME)
    image = _first_validation_image(demo.output)
    losses = f"{first['val/loss']:.2f} -> {last['val/loss']:.2f}"
    done = {
        "prepare": f"{TRAIN_IMAGES} + {VAL_IMAGES} images with {_mask_count(demo.output)} masks, a teacher",
        "embed": f"embeddings of 64 x {TEACHER.grid} x {TEACHER.grid}",
        "train": f"validation loss {losses}, cosine similarity {1 - last['val/cosine']:.2f}",
        "merge": f"a model of {(demo.output / MERGED).stat().st_size / 1e6:.1f} MB",
        "predict": f"{len(json.loads((demo.output / 'masks' / f'{image}.json').read_text())['objects'])} mask",
    }
    table = Table("step", "seconds", "result")
    for step, result in done.items():
        table.add_row(step, f"{demo.seconds[step]:.0f}", result)
    demo.console.print()
    demo.console.print(table)
    for what, name in (
        ("teacher and student features side by side", "features.png"),
        ("loss curves", "loss.png"),
        ("mask overlay", f"masks/{image}_overlay.png"),
        ("merged model", MERGED),
    ):
        demo.console.print(f"{what}: {demo.output / name}", highlight=False, soft_wrap=True)
    demo.console.print(f"\n{WARNING}\n{CLOSING}", highlight=False, soft_wrap=True)


def _mask_count(output: Path) -> int:
    files = (output / "photographs" / "annotations").rglob("*.json")
    return sum(len(json.loads(path.read_text())["annotations"]) for path in files)


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = REPOSITORY / "output" / "demo"
    parser.add_argument("--output", type=Path, default=default, metavar="DIR", help="where to write")
    output = parser.parse_args().output.resolve()
    os.chdir(REPOSITORY)  # where the commands are run, as the README has them
    console = Console()
    demo = Demo(output.relative_to(REPOSITORY) if output.is_relative_to(REPOSITORY) else output, console)
    console.print(WARNING)
    prepare(demo)
    run_commands(demo)
    draw(demo)
    summarise(demo)


if __name__ == "__main__":
    main()
