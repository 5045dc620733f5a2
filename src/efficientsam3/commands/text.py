"""`efficientsam3 text`: from phrases to a small student of SAM3's text encoder."""

from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field

from efficientsam3.commands.arguments import SettingsRequest, config_key, read_config
from efficientsam3.config.text import TextTrainConfig
from efficientsam3.data.split import DEFAULT_VAL_RATIO
from efficientsam3.models.text_students import MOST_TOKENS
from efficientsam3.runtime.device import DeviceName
from efficientsam3.runtime.request import Argument, Count, CountOrZero, File, FileOrFolder, Folder, Overwrite, Request

_key = partial(config_key, schema=TextTrainConfig)
PHRASE_FILE = "a list of phrases"


class PhrasesRequest(Request):
    """Where phrases come from, and where they go."""

    output: Folder = Field(description="folder for train.txt and val.txt")
    files: Annotated[list[Path], Argument("FILE", action="extend")] = Field(
        [], description="text files with one phrase a line"
    )
    categories: Annotated[list[Path], Argument("FILE", action="extend")] = Field(
        [], description="annotation files of COCO or LVIS, whose categories' names are taken"
    )
    generate: CountOrZero = Field(
        0, description="make so many phrases of WordNet's nouns and a list of attributes; 0, the default: none"
    )
    val_ratio: Annotated[float, Argument("R")] = Field(
        DEFAULT_VAL_RATIO, gt=0, lt=1, description="share of the nouns whose phrases are for validation alone"
    )
    seed: CountOrZero = Field(0, description="of what is generated")
    overwrite: Overwrite = False


class EmbedPhrasesRequest(Request):
    """The phrases to embed, and the teacher."""

    phrases: Folder = Field(description="folder with train.txt and val.txt")
    sam3_ckpt: FileOrFolder = Field(description="SAM3 itself: sam3.pt, or a Hugging Face directory")
    output: Folder = Field(description="folder for the store, which is its subfolder embeddings")
    context_length: Annotated[int, Argument("N")] = Field(
        MOST_TOKENS,
        ge=3,
        le=MOST_TOKENS,
        description="most tokens of a phrase, its start and end included; the student has as many positions",
    )
    batch_size: Count = Field(64, description="phrases at once")
    device: DeviceName = "auto"


class TextTrainRequest(SettingsRequest):
    """The training to run."""

    data_path: Folder | None = _key("DATA.DATA_PATH")
    output: Folder | None = _key("OUTPUT")
    resume: Annotated[Path | None, Argument("CKPT")] = _key("MODEL.RESUME")
    batch_size: Count | None = _key("DATA.BATCH_SIZE")
    only_cpu: bool | None = _key("DEVICE", "cpu")
    allow_config_change: bool = Field(
        False,
        description="continue from a checkpoint of another configuration; without it, the changes are named and "
        "refused",
    )


class TextEvaluateRequest(Request):
    """The student to measure, and on what."""

    student_ckpt: File = Field(description="the student: ckpt_epoch_N.pth of `efficientsam3 text train`, or published")
    phrases: Folder = Field(description="folder with train.txt and val.txt")
    store: Folder = Field(description="store of the teacher's features of both")
    output: File | None = Field(None, description="also write the figures there, as JSON")
    device: DeviceName = "auto"
    overwrite: Overwrite = False


def _phrases(request: PhrasesRequest) -> None:
    """Collect phrases, normalise them, and hold some out by their noun."""
    from efficientsam3.data.phrases import generate_phrases, read_categories, read_phrases, split_phrases
    from efficientsam3.runtime.errors import UserError
    from efficientsam3.runtime.own_files import check_files, write_own_text

    paths = {split: request.output / f"{split}.txt" for split in ("train", "val")}
    check_files(tuple(paths.values()), PHRASE_FILE, request.overwrite)
    found = [phrase for path in request.files for phrase in read_phrases(path)]
    found += [phrase for path in request.categories for phrase in read_categories(path)]
    found += generate_phrases(request.generate, request.seed) if request.generate else []
    splits = split_phrases(found, request.val_ratio)
    if not splits.train or not splits.val:
        raise UserError(
            f"{len(found)} phrases leave {len(splits.train)} to train on and {len(splits.val)} to validate on: give "
            "more by --files, --categories or --generate, or another --val-ratio."
        )
    request.output.mkdir(parents=True, exist_ok=True)
    for split, path in paths.items():
        lines = "".join(f"{phrase}\n" for phrase in getattr(splits, split))
        write_own_text(path, lines, PHRASE_FILE, request.overwrite)
    print(
        f"{len(splits.train)} phrases to train on and {len(splits.val)} to validate on in {request.output}; "
        f"{splits.dropped} left out, which have a noun of validation in them"
    )


def _embed(request: EmbedPhrasesRequest) -> None:
    """Run SAM3's text encoder over the phrases once and store its features; interrupted, run it again."""
    from efficientsam3.embed.phrases import embed_phrases
    from efficientsam3.runtime.run import run_step

    with run_step(request.device, request.output) as process:
        embed_phrases(
            request.phrases,
            request.sam3_ckpt,
            request.output,
            request.context_length,
            request.batch_size,
            process,
        )


def _train(request: TextTrainRequest) -> None:
    """Train a student on the stored features; interrupted, run it again."""
    from efficientsam3.runtime.signals import stop_on_signals

    # From the start, so that a signal that arrives while PyTorch is imported is not lost.
    with stop_on_signals() as stop:
        config = read_config(TextTrainConfig, request)

        from efficientsam3.runtime.run import run_step, write_config
        from efficientsam3.train.phrase_plan import plan_phrases
        from efficientsam3.train.run import run_training

        with run_step(config.DEVICE, config.output_dir) as process:
            admitted = partial(write_config, config, config.output_dir)
            run_training(plan_phrases(config), process, stop, None, request.allow_config_change, admitted)


def _evaluate(request: TextEvaluateRequest) -> None:
    """Compare a student's features with the teacher's, beside two baselines."""
    from dataclasses import asdict

    from rich.table import Table

    from efficientsam3.evaluate.phrases import evaluate_phrases
    from efficientsam3.runtime.console import Console
    from efficientsam3.runtime.device import select_device
    from efficientsam3.runtime.files import to_json
    from efficientsam3.runtime.own_files import check_files, write_own_text

    if request.output is not None:
        check_files((request.output,), "figures", request.overwrite)
    scores = evaluate_phrases(request.student_ckpt, request.phrases, request.store, select_device(request.device))
    if request.output is not None:
        write_own_text(request.output, to_json([asdict(score) for score in scores]), "figures", request.overwrite)
    lengths = list(scores[0].by_length)
    table = Table("tokens", "phrases", *(score.name for score in scores), title="Cosine with the teacher, by token")
    for length in lengths:
        count = scores[0].by_length[length][0]
        table.add_row(str(length), str(count), *(f"{score.by_length[length][1]:.4f}" for score in scores))
    table.add_row("all", str(scores[0].phrases), *(f"{score.mean:.4f}" for score in scores))
    Console().print(table)


ACTIONS = {
    "phrases": (PhrasesRequest, _phrases),
    "embed": (EmbedPhrasesRequest, _embed),
    "train": (TextTrainRequest, _train),
    "evaluate": (TextEvaluateRequest, _evaluate),
}
