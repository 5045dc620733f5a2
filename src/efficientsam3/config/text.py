"""The typed configuration of a text student's training; see `schema` for how it is read."""

from pathlib import Path

from pydantic import Field, field_validator, model_validator

from efficientsam3.config.schema import NonNegative, Positive, RunConfig, Section, TrainSettings
from efficientsam3.models.text_students import PADDINGS, TEXT_STUDENTS, Padding, text_shape
from efficientsam3.runtime.request import describe


class PhraseDataConfig(Section):
    """Where the phrases are."""

    DATA_PATH: Path = Field(
        Path("data/phrases"), description="folder with train.txt and val.txt, which `efficientsam3 text phrases` makes"
    )
    BATCH_SIZE: Positive = Field(64, description="phrases per process and step")
    NUM_SAMPLES: NonNegative = Field(0, description="use only the first N phrases of each split; 0 means all")


class TextStudentConfig(Section):
    """The student of the text encoder."""

    NAME: str = Field("text_student", min_length=1, description="names the default output folder")
    BACKBONE: str = Field(
        description=f"one of {', '.join(TEXT_STUDENTS)}, or mct/ or base/ with WIDTHxLAYERSxHEADS, e.g. base/256x4x4"
    )
    PADDING: Padding = Field("transformers", description=f"what is behind a phrase. {describe(PADDINGS)}")
    RESUME: Path | None = Field(None, description="training checkpoint to continue from; beats TRAIN.AUTO_RESUME")

    @field_validator("BACKBONE")
    @classmethod
    def _is_known(cls, value: str) -> str:
        text_shape(value)
        return value


class TextDistillConfig(Section):
    """What the student is trained against, and the weights of the losses; each counts valid tokens alone."""

    TEACHER_EMBED_PATH: Path = Field(
        Path("output/text_teacher/embeddings"), description="store written by `efficientsam3 text embed`"
    )
    TOKEN_WISE: float = Field(1.0, ge=0, description="weight of the mean squared error")
    COSINE: float = Field(2.0, ge=0, description="weight of 1 - cosine similarity")
    SHUFFLE: float = Field(
        0.0,
        ge=0,
        description="weight of the squared difference between a phrase's mean features and those of its words in "
        "another order, e.g. 0.05; it doubles the time of a step",
    )

    @model_validator(mode="after")
    def _some_loss(self) -> "TextDistillConfig":
        if not self.TOKEN_WISE + self.COSINE:
            raise ValueError("TOKEN_WISE and COSINE are both 0: the teacher would not be learnt, give one a weight")
        return self


class TextTrainConfig(RunConfig):
    """Root of the configuration of `efficientsam3 text train`."""

    DATA: PhraseDataConfig = Field(default_factory=PhraseDataConfig)
    MODEL: TextStudentConfig
    DISTILL: TextDistillConfig = Field(default_factory=TextDistillConfig)
    TRAIN: TrainSettings = Field(default_factory=TrainSettings)
    OUTPUT: Path | None = Field(None, description="where everything is written; by default output/text/<MODEL.NAME>")
    SAVE_FREQ: Positive = Field(1, description="a checkpoint every N epochs; the last epoch is always saved")

    @model_validator(mode="after")
    def _all_has_effect(self) -> "TextTrainConfig":
        for key in ("USE_CHECKPOINT", "SMALL_EPOCHS", "LAYER_DECAY"):
            value = getattr(self.TRAIN, key)
            if value != TrainSettings.model_fields[key].default:
                raise ValueError(f"TRAIN.{key} {value} has no effect on a text student: leave it out")
        return self

    @property
    def output_dir(self) -> Path:
        """OUTPUT or its default, or the subfolder TAG of it."""
        return (self.OUTPUT or Path("output/text") / Path(self.MODEL.NAME).name) / self.TAG
