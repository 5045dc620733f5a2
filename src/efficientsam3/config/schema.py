"""The typed configuration. Every key stands here once, with its meaning; unknown keys are refused.

Keys are upper case, as in the published YAML files. Each command has its own root, so that a key which a command would
not read does not exist for it.
"""

from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from efficientsam3.data.layouts import DATASETS, DEFAULT_DATASET, DatasetName
from efficientsam3.models.heads import DEFAULT_HEAD, HEADS, HeadName
from efficientsam3.models.students import named_backbones
from efficientsam3.runtime.device import DeviceName
from efficientsam3.runtime.request import check_paths, describe
from efficientsam3.store.codecs import CODECS, DEFAULT_CODEC, CodecName

Channels = tuple[float, float, float]
Positive = Annotated[int, Field(gt=0, lt=2**31)]
OrTeachers = Literal["teacher"] | Positive  # teacher: what the teacher has
NonNegative = Annotated[int, Field(ge=0, lt=2**31)]


class Section(BaseModel):
    """Base of all sections: immutable, unknown keys refused, NaN and infinities refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _has_possible_paths(cls, value: Any) -> Any:
        return check_paths(value)


class AugmentConfig(Section):
    """Augmentation, driven by a seed per image that is stored with its embedding; off by default."""

    HFLIP: float = Field(0.0, ge=0, le=1, description="probability of a horizontal flip")
    COLOR_JITTER: float = Field(0.0, ge=0, lt=1, description="brightness, contrast and saturation change by up to this")


class DataConfig(Section):
    """Where the images are and how they become the encoder's input."""

    DATA_PATH: Path = Field(Path("data/sa-1b"), description="folder with images/{train,val} (see data/reorg_sa1b.py)")
    DATASET: DatasetName = Field(DEFAULT_DATASET, description=f"how DATA_PATH is arranged. {describe(DATASETS)}")
    IMG_SIZE: OrTeachers = Field("teacher", description="side in pixels of the encoder's input; SAM3 takes 1008 only")
    RESIZE: Literal["teacher", "square", "pad"] = Field(
        "teacher", description="square: squash to IMG_SIZE; pad: keep the aspect ratio; teacher: what the teacher needs"
    )
    MEAN: Literal["teacher"] | Channels = Field("teacher", description="per channel, of pixels in [0, 1]")
    STD: Literal["teacher"] | Channels = Field("teacher", description="per channel, of pixels in [0, 1]")
    BATCH_SIZE: Positive = Field(4, description="images per process and step")
    NUM_WORKERS: Literal["auto"] | NonNegative = Field(
        "auto",
        description="image-reading processes per process; 0 reads in the process itself; auto: its share of this "
        "machine's cores, 16 at most",
    )
    NUM_SAMPLES: NonNegative = Field(0, description="use only the first N images of each split; 0 means all")

    @field_validator("STD")
    @classmethod
    def _positive(cls, value: Literal["teacher"] | Channels) -> Literal["teacher"] | Channels:
        if value != "teacher" and min(value) <= 0:
            raise ValueError("every channel's standard deviation must be positive")
        return value


class ExportDataConfig(DataConfig):
    """The embedding run also decides the augmentation that teacher and student share."""

    AUGMENT: AugmentConfig = Field(default_factory=AugmentConfig, description="recorded in the store's manifest")


class TeacherConfig(Section):
    """The teacher."""

    NAME: str = Field("sam3", min_length=1, description="the teacher's name in the store's manifest")
    RESUME: Path = Field(
        Path("sam3_checkpoints/sam3.pt"),
        description="native sam3.pt, a Hugging Face SAM3 directory, or an ONNX image encoder",
    )
    COMPILE: bool = Field(
        False, description="compile the teacher with torch.compile; its first batch is compared with one without"
    )


class EmbeddingConfig(Section):
    """Shape of the teacher's embedding: (EMBED_DIM, EMBED_SIZE, EMBED_SIZE)."""

    EMBED_SIZE: OrTeachers = Field("teacher", description="cells a side: 72 for SAM3, 64 for a SAM-style teacher")
    EMBED_DIM: OrTeachers = Field("teacher", description="channels: 1024 for SAM3, 256 for a SAM-style teacher")


class StoreConfig(EmbeddingConfig):
    """What the embedding run writes; recorded in the store's manifest, where training finds it."""

    CODEC: CodecName = Field(
        DEFAULT_CODEC,
        description=f"how embeddings are stored; `efficientsam3 store advise` compares them. {describe(CODECS)}",
    )


_NECK = (
    "learning rate of the {}'s neck, as a share of the student's: above 0, the neck is trained on the student's "
    "embeddings and merged with it; the teacher's answers keep coming from SAM3's own"
)


class MasksConfig(Section):
    """The decoder in the loop: the student's masks against the teacher's, as a loss beside the features'."""

    DECODER: Path | None = Field(
        None,
        description="the teacher's frozen mask decoder: SAM's as .onnx, or the SAM3; without one, features alone are "
        "learnt",
    )
    PROMPTS: Positive = Field(
        2,
        description="of each image, boxes and points by turns: on annotated objects; without any, around the teacher's "
        "masks at the cells of a grid",
    )
    ROUNDS: NonNegative = Field(
        1, description="clicks that refine each prompt, where the student's mask differs from the teacher's"
    )
    AT_ONCE: NonNegative = Field(
        32, description="prompts decoded at once; with more in a batch, they are computed again backwards; 0: all"
    )
    WEIGHT: float = Field(0.5, ge=0, description="of the losses below together, beside the features' losses")
    BCE: float = Field(5.0, ge=0, description="weight of the cross-entropy with the teacher's soft masks")
    DICE: float = Field(5.0, ge=0, description="weight of the Dice loss with them")
    IOU: float = Field(1.0, ge=0, description="weight of the squared error of the predicted IoUs")
    LEVELS: float = Field(
        0.0,
        ge=0,
        description="weight of the squared difference of what SAM3's decoder reads, the levels of its neck, as a share "
        "of the teacher's; with BCE, DICE and IOU 0, no masks are asked for",
    )
    NECK: float = Field(0.0, ge=0, description=_NECK.format("tracker"))

    @property
    def learns(self) -> bool:
        """Whether anything is learnt by it."""
        return self.DECODER is not None and self.WEIGHT * max(self.BCE, self.DICE, self.IOU, self.LEVELS) > 0

    @model_validator(mode="after")
    def _trains_its_neck(self) -> "MasksConfig":
        if self.NECK and self.DECODER is not None and not self.learns:
            raise ValueError("NECK trains a neck, but no loss here has a weight: give one a weight, or set NECK 0")
        return self


class DetectorConfig(Section):
    """SAM3's detector in the loop: what it finds in the student's embeddings, against the teacher's."""

    CHECKPOINT: Path | None = Field(
        None,
        description="the teacher, a SAM3 with its text encoder, whose frozen detector is asked; without one, none is",
    )
    TEXT: NonNegative = Field(
        2, description="phrases that each image is asked: by turns a noun of an object in it, and one of none"
    )
    PHRASES: tuple[str, ...] | Path = Field(
        (), description="phrases beside the names of the dataset's categories: a list, or a text file with one a line"
    )
    VISUAL: NonNegative = Field(
        1, description="examples that each image is asked: boxes of annotated objects; without any, cells of a grid"
    )
    THRESHOLD: float = Field(
        0.3, ge=0, le=1, description="what the teacher scores above this counts for masks and boxes; all for scores"
    )
    AT_ONCE: NonNegative = Field(
        4, description="prompts asked at once; with more in a batch, they are computed again backwards; 0: all"
    )
    WEIGHT: float = Field(0.5, ge=0, description="of the losses below together, beside the others")
    MASK: float = Field(
        5.0, ge=0, description="weight of the cross-entropy and Dice loss with the teacher's soft masks"
    )
    BOX: float = Field(2.0, ge=0, description="weight of the boxes' differences and 1 - GIoU")
    SCORE: float = Field(1.0, ge=0, description="weight of the cross-entropy with the teacher's scores")
    PRESENCE: float = Field(1.0, ge=0, description="weight of the cross-entropy with the teacher's presence")
    LEVELS: float = Field(
        0.0,
        ge=0,
        description="weight of the squared difference of what the detector reads, the levels of its neck, as a share "
        "of the teacher's; with MASK, BOX, SCORE and PRESENCE 0, it is not asked",
    )
    NECK: float = Field(0.0, ge=0, description=_NECK.format("detector"))

    @property
    def learns(self) -> bool:
        """Whether anything is learnt by it."""
        weights = (self.MASK, self.BOX, self.SCORE, self.PRESENCE, self.LEVELS)
        return self.CHECKPOINT is not None and self.WEIGHT * max(weights) > 0

    @model_validator(mode="after")
    def _asks(self) -> "DetectorConfig":
        if not self.TEXT + self.VISUAL:
            raise ValueError("TEXT and VISUAL are both 0: the detector would not be asked, give one of them a number")
        if self.NECK and self.CHECKPOINT is not None and not self.learns:
            raise ValueError("NECK trains a neck, but no loss here has a weight: give one a weight, or set NECK 0")
        return self


class DistillConfig(EmbeddingConfig):
    """What the student is trained against, and the weights of the loss terms."""

    TEACHER_EMBED_PATH: Path = Field(
        Path("output/stage1_teacher/embeddings"), description="embedding store written by `efficientsam3 embed`"
    )
    ONLINE: bool = Field(
        False, description="compute the embeddings in the loop, by TEACHER, instead of reading a store"
    )
    ONLINE_CACHE: Path | None = Field(
        None, description="keep what ONLINE computes here, like an export's OUTPUT, and read it from the next epoch on"
    )
    AUGMENT: AugmentConfig = Field(default_factory=AugmentConfig, description="of ONLINE; a store has its own")
    READ_WINDOW: NonNegative = Field(
        0, description="shuffle within windows of so many neighbouring records, for slow disks; 0: over the whole store"
    )
    PIXEL_WISE: float = Field(1.0, ge=0, description="weight of the masked mean squared error")
    COSINE: float = Field(1.0, ge=0, description="weight of the masked 1 - cosine similarity")
    TERMS: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="weights of further loss terms by their names, see train/objective.py"
    )
    NORMALIZE: Literal["none", "channel", "phi-s", "whiten"] = Field(
        "channel",
        description="channel: learn the teacher's features at zero mean and unit variance per channel, by the store's "
        "statistics or, with ONLINE, those of the first training images; whiten: their principal components at unit "
        "variance; phi-s: these mixed so that all have the same variance (PHI-S), both by the covariance of the first "
        "256 training images in the store; every reader of the checkpoint undoes it in the last convolution",
    )
    PADDING: bool = Field(
        False,
        description="learn the embedding of the padding as well, which a mask decoder reads; without effect for a "
        "teacher such as SAM3, whose images fill its input",
    )
    MASKS: MasksConfig = Field(default_factory=MasksConfig, description="the decoder in the loop")
    DETECTOR: DetectorConfig = Field(default_factory=DetectorConfig, description="SAM3's detector in the loop")

    @property
    def by_features_alone(self) -> bool:
        """Whether nothing but the features' losses is minimised."""
        return self.MASKS.DECODER is None and self.DETECTOR.CHECKPOINT is None

    @model_validator(mode="after")
    def _some_loss(self) -> "DistillConfig":
        learns = self.MASKS.learns or self.DETECTOR.learns
        if not learns and not any((self.PIXEL_WISE, self.COSINE, *self.TERMS.values())):
            raise ValueError(
                "PIXEL_WISE and COSINE are both 0: nothing would be learnt, give one of them or of TERMS a weight"
            )
        return self


class StudentConfig(Section):
    """The student."""

    NAME: str = Field("student", min_length=1, description="names the default output folder")
    BACKBONE: str = Field(description=f"one of {', '.join(named_backbones())}, or timm/<name>")
    HEAD: HeadName = Field(DEFAULT_HEAD, description=describe(HEADS))
    PRETRAINED: bool | Path = Field(
        True, description="true: timm's ImageNet weights; a path: a local file; false: from scratch"
    )
    RESUME: Path | None = Field(None, description="training checkpoint to continue from; beats TRAIN.AUTO_RESUME")


class TrainSettings(Section):
    """Optimisation."""

    EPOCHS: Positive = 50
    WARMUP_EPOCHS: float = Field(5, ge=0, description="linear warm-up, in epochs")
    BASE_LR: float = Field(1e-3, gt=0, description="learning rate, which LR_SCALING scales")
    MIN_LR: float = Field(1e-5, ge=0, description="end of the cosine, scaled like BASE_LR")
    LR_SCALING: Literal["steps", "sqrt", "linear", "none"] = Field(
        "steps",
        description="steps: BASE_LR in a training of 256 steps or more, and as 1 / sqrt(steps) in shorter ones, up to "
        "4 times BASE_LR; sqrt, linear: BASE_LR at 512 images a step, and by that rule at others; none: BASE_LR",
    )
    LAYER_DECAY: float = Field(
        1.0,
        gt=0,
        le=1,
        description="factor on the learning rate from each stage of the backbone to the one before, the head having "
        "the full rate; 1: one rate for all",
    )
    WEIGHT_DECAY: float = Field(0.01, ge=0, description="on weights of convolutions and linear layers only")
    CLIP_GRAD: float = Field(5.0, ge=0, description="largest gradient norm; 0 switches clipping off")
    ACCUMULATION_STEPS: Positive = Field(1, description="batches per optimiser step")
    SMALL_EPOCHS: NonNegative = Field(
        0, description="first epochs, in which the student gets images of half the size, at a quarter of the work"
    )
    USE_CHECKPOINT: bool = Field(False, description="recompute activations in the backward pass to save memory")
    USE_SYNC_BN: bool = Field(False, description="BatchNorm statistics over all GPUs")
    EMA: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of an average of the weights, e.g. 0.999, which is then validated and merged; 0: none",
    )
    COMPILE: bool = Field(False, description="compile the student with torch.compile")
    SAVE_STEPS: NonNegative = Field(0, description="a checkpoint every N optimiser steps within an epoch; 0: none")
    KEEP_STEPS: Positive = Field(2, description="how many of those to keep; the end of an epoch removes them")
    KEEP_EPOCHS: NonNegative = Field(0, description="how many epochs' checkpoints to keep, and the best one; 0: all")
    AUTO_RESUME: bool = Field(True, description="continue from the last checkpoint in OUTPUT")

    @model_validator(mode="after")
    def _ordered(self) -> "TrainSettings":
        if self.MIN_LR > self.BASE_LR:
            raise ValueError(f"MIN_LR {self.MIN_LR} is above BASE_LR {self.BASE_LR}: the cosine has to fall")
        if self.WARMUP_EPOCHS >= self.EPOCHS:
            raise ValueError(
                f"WARMUP_EPOCHS {self.WARMUP_EPOCHS:g} leaves nothing of EPOCHS {self.EPOCHS}: warm up for less, "
                "e.g. --opts TRAIN.WARMUP_EPOCHS 0"
            )
        return self


class ProbeConfig(Section):
    """The mask probe after each epoch: masks of val images from the student's embeddings, by a frozen decoder."""

    DECODER: Path | None = Field(
        None, description="SAM's mask decoder as .onnx, or the exported SAM3; without one, masks are not probed"
    )
    IMAGES: Positive = Field(32, description="annotated val images to probe, chosen by SEED")
    OBJECTS: Positive = Field(4, description="objects of each image, likewise; each is prompted by box and by point")


class RunConfig(Section):
    """What every run has."""

    TAG: str = Field("", pattern=r"^[\w.-]*$", description="when given, a subfolder of OUTPUT")
    AMP_ENABLE: bool = Field(True, description="mixed precision where the hardware has it")
    SEED: int = Field(0, ge=0, lt=2**31)
    PRINT_FREQ: Positive = Field(10, description="a log line every N batches")
    DEVICE: DeviceName = "auto"

    @field_validator("TAG")
    @classmethod
    def _is_a_subfolder(cls, value: str) -> str:
        if value and not value.strip("."):
            raise ValueError(f"{value} is not a subfolder of OUTPUT: give a name")
        return value


class ExportConfig(RunConfig):
    """Root of the configuration of `efficientsam3 embed`."""

    DATA: ExportDataConfig = Field(default_factory=ExportDataConfig)
    MODEL: TeacherConfig = Field(default_factory=TeacherConfig)
    DISTILL: StoreConfig = Field(default_factory=StoreConfig)
    OUTPUT: Path = Field(Path("output/stage1_teacher"), description="where everything is written")

    @property
    def output_dir(self) -> Path:
        """OUTPUT, or its subfolder TAG."""
        return self.OUTPUT / self.TAG


class TrainConfig(RunConfig):
    """Root of the configuration of `efficientsam3 train`."""

    DATA: DataConfig = Field(default_factory=DataConfig)
    MODEL: StudentConfig
    TEACHER: TeacherConfig = Field(default_factory=TeacherConfig, description="needs DISTILL.ONLINE")
    DISTILL: DistillConfig = Field(default_factory=DistillConfig)
    TRAIN: TrainSettings = Field(default_factory=TrainSettings)
    PROBE: ProbeConfig = Field(default_factory=ProbeConfig)
    OUTPUT: Path | None = Field(None, description="where everything is written; by default output/stage1/<MODEL.NAME>")
    SAVE_FREQ: Positive = Field(1, description="a checkpoint every N epochs; the last epoch is always saved")

    @model_validator(mode="after")
    def _stays_below_its_default_output(self) -> "TrainConfig":
        name = Path(self.MODEL.NAME)
        if self.OUTPUT is None and (name.is_absolute() or ".." in name.parts):
            raise ValueError(f"MODEL.NAME {name} leads out of the default folder output/stage1: give OUTPUT")
        return self

    @model_validator(mode="after")
    def _all_has_effect(self) -> "TrainConfig":
        online = self.DISTILL.ONLINE
        self._need(online, "DISTILL.ONLINE", "TEACHER", "DISTILL.ONLINE_CACHE", "DISTILL.AUGMENT")
        self._need(not online, "DISTILL.ONLINE false", "DISTILL.TEACHER_EMBED_PATH", "DISTILL.READ_WINDOW")
        if online and self.DISTILL.NORMALIZE in ("phi-s", "whiten"):
            raise ValueError(
                f"DISTILL.NORMALIZE {self.DISTILL.NORMALIZE} needs the embeddings of a store: set channel or none, or "
                "embed first"
            )
        masks = [f"DISTILL.MASKS.{key}" for key in MasksConfig.model_fields]
        self._need(self.DISTILL.MASKS.DECODER is not None, masks[0], *masks[1:])
        detector = [f"DISTILL.DETECTOR.{key}" for key in DetectorConfig.model_fields]
        self._need(self.DISTILL.DETECTOR.CHECKPOINT is not None, detector[0], *detector[1:])
        self._need(self.DISTILL.DETECTOR.TEXT > 0, "DISTILL.DETECTOR.TEXT", "DISTILL.DETECTOR.PHRASES")
        self._need(self.PROBE.DECODER is not None, "PROBE.DECODER", "PROBE.IMAGES", "PROBE.OBJECTS")
        return self

    def _need(self, met: bool, condition: str, *keys: str) -> None:
        """Refuse keys that differ from their defaults where the condition that gives them an effect is not met."""
        for key in keys if not met else ():
            *sections, leaf = key.split(".")
            section: BaseModel = reduce(getattr, sections, self)
            value = getattr(section, leaf)
            if value != type(section).model_fields[leaf].get_default(call_default_factory=True):
                text = "" if isinstance(value, Section) else f" {value}"
                raise ValueError(f"{key}{text} has no effect without {condition}: set that, or leave {key} out")

    @property
    def output_dir(self) -> Path:
        """OUTPUT or its default, or the subfolder TAG of it."""
        return (self.OUTPUT or Path("output/stage1") / self.MODEL.NAME) / self.TAG
