"""The requests of `predict` and `serve`: every option, described once. No PyTorch."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from efficientsam3.export.onnx.manifest import Variant
from efficientsam3.runtime.device import DeviceName
from efficientsam3.runtime.request import Argument, CountOrZero, Folder, Overwrite, Request, check_path
from efficientsam3.sam3.holes import MAX_HOLE_AREA
from efficientsam3.sam3.prompts import Box, ConceptPrompt, ObjectPrompt, Point, Prompt

ONNXRUNTIME_WEB = Path("node_modules/onnxruntime-web/dist")  # where npm puts it, below the current folder
_ImagePath = Annotated[str, AfterValidator(check_path)]
_BOX = Argument(("X0", "Y0", "X1", "Y1"), action="append")
_POINT = Argument(("X", "Y"), action="append")


class PredictRequest(Request):
    """Segment images by text, boxes and points."""

    model: Annotated[Path, Argument("MODEL", positional=True)] = Field(
        description="a merged .pt file, a Hugging Face directory, plain SAM3 (sam3.pt or facebook/sam3's directory), "
        "or what export-onnx wrote, which needs no PyTorch"
    )
    images: Annotated[tuple[Annotated[str, AfterValidator(check_path)], ...], Argument("IMAGE", positional=True)] = (
        Field(min_length=1, description="images, folders of images, or quoted globs")
    )
    text: Annotated[tuple[str, ...], Argument("PHRASE", action="append")] = Field(
        (),
        description="find everything that a short noun phrase names, such as 'a dog'; repeatable, each asked on its "
        "own",
    )
    box: Annotated[tuple[Box, ...], _BOX] = Field(
        (), description="an example of what to find, in pixels; repeatable; goes to the detector, with the text"
    )
    negative_box: Annotated[tuple[Box, ...], _BOX] = Field((), description="an example of what not to find; repeatable")
    object_box: Annotated[Box | None, _BOX] = Field(
        None, description="segment the one object in this box; goes to the tracker, with the points"
    )
    point: Annotated[tuple[Point, ...], _POINT] = Field(
        (), description="a point on the one object to segment, in pixels; repeatable, all on one object"
    )
    negative_point: Annotated[tuple[Point, ...], _POINT] = Field(
        (), description="a point that is not on the object; repeatable"
    )
    threshold: Annotated[float, Argument("P")] = Field(0.5, description="lowest score of what text and boxes find")
    max_hole_area: Annotated[CountOrZero, Argument("PIXELS")] = Field(
        MAX_HOLE_AREA,
        description="fill holes of so many low-resolution pixels or fewer in masks of points and object boxes, as "
        "Meta's code does; 0 fills none",
    )
    out: Folder = Field(
        Path("output/predict"),
        description="where overlays, masks and COCO RLE JSON go; in folders as the images' where those are in several",
    )
    device: DeviceName = "auto"
    variant: Variant | None = Field(
        None,
        description="the image encoder of an ONNX directory in another precision, if it was exported with it",
    )
    overwrite: Overwrite = False

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """What is asked of every image: one prompt for each text, or for the boxes alone, and one for the object."""
        boxes = (*self.box, *self.negative_box)
        box_labels = (1,) * len(self.box) + (0,) * len(self.negative_box)
        texts: tuple[str | None, ...] = self.text or ((None,) if boxes else ())
        points = (*self.point, *self.negative_point)
        labels = (1,) * len(self.point) + (0,) * len(self.negative_point)
        concepts = [ConceptPrompt(text, boxes, box_labels) for text in texts]
        return (*concepts, *([ObjectPrompt(points, labels, self.object_box)] if points or self.object_box else []))


class ServeRequest(Request):
    """Serve a page that prompts an ONNX directory in the browser."""

    directory: Annotated[Path, Argument("DIR", positional=True)] = Field(description="what export-onnx wrote")
    onnxruntime_web: Folder = Field(
        ONNXRUNTIME_WEB,
        description="the dist folder of npm's onnxruntime-web, which runs the graphs; `npm install onnxruntime-web` "
        "puts it in the standard place",
    )
    images: Annotated[Path | None, Argument("DIR", aliases=("--pictures",))] = Field(
        None, description="images that the page offers, and opens as ?image=NAME"
    )
    max_hole_area: Annotated[CountOrZero, Argument("PIXELS")] = Field(
        MAX_HOLE_AREA, description="as in predict; what the page starts with"
    )
    port: int = Field(8000, description="where to listen; 0 takes any free port")
    host: str = Field(
        "127.0.0.1",
        description="which address to listen on; 0.0.0.0 lets other machines in, whose browsers then compute with one "
        "thread",
    )
