"""The graphs that a model is exported as, by name, and their inputs and outputs. Read without PyTorch."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

# Published as file names and in model.json; the tracker's are called "interactive", Meta's word for it.
GraphName = Literal["image_encoder", "text_encoder", "detector_neck", "detector", "interactive_neck", "interactive"]
PIXELS, EMBEDDING = "pixels", "embedding"  # input and output of the image encoder
# Outputs of a neck and inputs of the detector or tracker: levels of 4, 2 and 1 cells per cell of the embedding.
DETECTOR_LEVELS = ("detector_features_0", "detector_features_1", "detector_features_2")
TRACKER_LEVELS = ("interactive_features_0", "interactive_features_1", "interactive_features_2")


class Port(BaseModel):
    """An input or output of a graph."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: str = Field(description="float or int64")
    shape: tuple[int | str, ...] = Field(description="a name where the length is free")
