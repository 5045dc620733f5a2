"""The inputs of a merge, checked before anything is written."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from efficientsam3.checkpoints.necks import TrainedNecks, neck_names, read_trained_necks, under
from efficientsam3.checkpoints.reading import StateDict
from efficientsam3.checkpoints.sam3_keys import HF_TRUNK_PREFIX
from efficientsam3.checkpoints.student_keys import is_fused
from efficientsam3.checkpoints.text_keys import HF_TEXT_PREFIXES
from efficientsam3.checkpoints.training import is_training_checkpoint
from efficientsam3.data.preprocess import Preprocessing, sam3_preprocessing
from efficientsam3.models.heads import embedding_width, identify_head
from efficientsam3.models.student import Student, StudentArchitecture
from efficientsam3.models.student_files import StudentFile, check_student, read_student
from efficientsam3.models.text_student_files import read_text_student
from efficientsam3.models.text_students import TextArchitecture
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.build import check_whole
from efficientsam3.sam3.contents import Contents, merged_necks, read_contents
from efficientsam3.sam3.necks import check_neck


@dataclass(frozen=True)
class TextInput:
    """A student of the text encoder that fits the SAM3 it goes into."""

    path: Path
    state: StateDict  # keys as `TextStudent` has them
    architecture: TextArchitecture


@dataclass(frozen=True)
class StudentInput:
    """A student that fits the SAM3 it goes into."""

    path: Path
    state: StateDict  # keys as `Student` has them
    architecture: StudentArchitecture
    preprocessing: Preprocessing | None  # None when the file does not say
    necks: TrainedNecks | None = None  # in the place of SAM3's own
    text: TextInput | None = None  # in the place of SAM3's text encoder

    def build(self) -> Student:
        """The student itself, on the CPU, in eval mode."""
        return Student.from_state(self.architecture, self.state)


@dataclass(frozen=True)
class Sam3Input:
    """SAM3 itself, its tensors mapped from disk."""

    path: Path
    contents: Contents

    @property
    def native(self) -> StateDict | None:
        """Its tensors under sam3.pt's keys; None for a Hugging Face directory."""
        return self.contents.native


def check_output(output: Path, sources: tuple[Path, ...]) -> None:
    """Check that a merge can write its output without losing an input.

    Raises:
        UserError: an input does not exist, or the output is one of the inputs.
    """
    for source in sources:
        if not source.exists():
            raise UserError(f"Checkpoint {source} does not exist: check the path.")
        if output.exists() and os.path.samefile(output, source):
            raise UserError(f"The output {output} is an input of the merge, which would be lost: choose another path.")


def original_trunk(contents: Contents) -> Any:
    """The config of SAM3's own image trunk, a `Sam3ViTConfig`.

    Raises:
        UserError: a student has replaced the trunk already.
    """
    trunk = contents.config.detector_config.vision_config.backbone_config
    if trunk.model_type != "sam3_vit_model":
        raise UserError(f"{contents.path} is an EfficientSAM3 already: give SAM3's own sam3.pt or directory.")
    return trunk


def read_sam3(path: Path) -> Sam3Input:
    """Open SAM3 and compare every name and shape with the model.

    Raises:
        UserError: the checkpoint is not a whole SAM3, or holds a student already.
    """
    contents = read_contents(path)
    original_trunk(contents)
    check_whole(contents)
    return Sam3Input(path, contents)


def read_fitting_student(path: Path, sam3: Sam3Input) -> StudentInput:
    """Open a student and check that it can take the place of SAM3's trunk.

    Raises:
        UserError: the student's weights are not finite or not whole, its embedding has another shape than the
            trunk's, or the necks that were trained with it began as another SAM3's.
    """
    file = read_student(path)
    trunk = original_trunk(sam3.contents)
    architecture = _architecture(file, trunk)
    grid = trunk.image_size // trunk.patch_size
    if (architecture.embed_dim, architecture.embed_size, architecture.image_size) != (
        trunk.hidden_size,
        grid,
        trunk.image_size,
    ):
        raise UserError(
            f"The student in {path} gives {architecture.embed_dim} channels on {architecture.embed_size}x"
            f"{architecture.embed_size} cells at {architecture.image_size} pixels, SAM3 in {sam3.path} takes "
            f"{trunk.hidden_size} on {grid}x{grid} at {trunk.image_size}: train it on this SAM3's embeddings."
        )
    check_student(file.state, architecture, path)
    necks = read_trained_necks(path) if is_training_checkpoint(path) else merged_necks(path)
    if necks is not None:
        for name in neck_names(necks.origins):
            check_neck(under(sam3.contents.tensors, name), necks, name, str(path), str(sam3.path))
    return StudentInput(path, file.state, architecture, file.preprocessing, necks)


def read_fitting_text(path: Path, sam3: Sam3Input) -> TextInput:
    """Open a text student and check that it can take the place of SAM3's text encoder.

    Raises:
        UserError: it is no text student's checkpoint, is not whole, or gives features of another width.
    """
    architecture, state = read_text_student(path)
    width = sam3.contents.tensors["detector_model.text_projection.weight"].shape[0]
    if architecture.embed_dim != width:
        raise UserError(
            f"The text student in {path} gives {architecture.embed_dim} channels, SAM3 in {sam3.path} takes {width}: "
            "train it on this SAM3's features."
        )
    return TextInput(path, state, architecture)


def _architecture(file: StudentFile, trunk: Any) -> StudentArchitecture:
    if file.architecture is not None:
        return file.architecture
    # A published file says nothing about itself: its head shows the width, and it was trained for SAM3's own grid.
    width = embedding_width(file.state) or trunk.hidden_size
    grid, head = trunk.image_size // trunk.patch_size, identify_head(file.state)
    return StudentArchitecture(file.backbone, width, grid, trunk.image_size, head, is_fused(file.state))


def preprocessing_note(student: StudentInput, sam3: Sam3Input) -> str | None:
    """A warning where the student was trained on other pixels than SAM3's own code gives it; None where not."""
    fed = sam3_preprocessing(sam3.contents.preprocessing.image_size)
    if student.preprocessing in (None, fed):
        return None
    assert student.preprocessing is not None
    return (
        f"The student was trained on {student.preprocessing.resize} images with mean {student.preprocessing.mean}; "
        "efficientsam3 predict gives it such images, but Meta's and transformers' code squash them and use mean 0.5."
    )


def architecture_dict(architecture: StudentArchitecture) -> dict[str, Any]:
    """JSON form of an architecture."""
    return asdict(architecture)


def hf_text(text: TextInput) -> StateDict:
    """A text student under facebook's keys."""
    return {
        prefix + key.removeprefix(own): value
        for own, prefix in HF_TEXT_PREFIXES.items()
        for key, value in text.state.items()
        if key.startswith(own)
    }


def without_trunk(contents: Contents) -> StateDict:
    """SAM3 under facebook's keys, without its trunk."""
    return {key: value for key, value in contents.tensors.items() if not key.startswith(HF_TRUNK_PREFIX)}
