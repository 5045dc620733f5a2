"""The metadata (JSON) and the model card (Markdown) that are written with a merged model."""

from dataclasses import asdict
from typing import Any

import torch
import transformers

import efficientsam3
from efficientsam3.data.preprocess import sam3_preprocessing
from efficientsam3.merge.account import MergeAccount, neck_replacements
from efficientsam3.merge.inputs import Sam3Input, StudentInput, architecture_dict
from efficientsam3.runtime.files import sha256_file
from efficientsam3.sam3.parts import PARTS, Part


def model_metadata(
    student: StudentInput, sam3: Sam3Input, parts: frozenset[Part], dtype: torch.dtype | None
) -> dict[str, Any]:
    """What was merged from which files, as JSON."""
    image_size = sam3.contents.preprocessing.image_size
    preprocessing = student.preprocessing or sam3_preprocessing(image_size)
    return {
        "format_version": 1,
        "student": {"file": student.path.name, **_hashes(student)},
        "sam3": {"file": sam3.path.name, **_hashes(sam3)},
        "architecture": architecture_dict(student.architecture),
        "preprocessing": preprocessing.model_dump(mode="json"),
        "parts": [part for part in PARTS if part in parts],
        **_trained_necks(student, sam3, parts),
        **_text(student, sam3),
        "dtype": "as in the source" if dtype is None else str(dtype).removeprefix("torch."),
        "versions": {
            "efficientsam3": efficientsam3.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def _text(student: StudentInput, sam3: Sam3Input) -> dict[str, Any]:
    """The text student: what came with the student now, or before the model was fused."""
    if student.text is not None:
        file = {"file": student.text.path.name, "sha256": sha256_file(student.text.path)}
        return {"text": asdict(student.text.architecture), "text_student": file}
    return {} if sam3.contents.text is None else {"text": asdict(sam3.contents.text)}


def _trained_necks(student: StudentInput, sam3: Sam3Input, parts: frozenset[Part]) -> dict[str, Any]:
    """The necks that are the student's: what came with it now, or before the model was fused."""
    if student.necks is None:
        return {"trained_necks": sam3.contents.trained_necks} if sam3.contents.trained_necks else {}
    kept = neck_replacements(student, sam3, parts)
    return {"trained_necks": {name: student.necks.origins[name] for name in kept}}


def _hashes(source: StudentInput | Sam3Input) -> dict[str, Any]:
    """SHA-256 of a checkpoint, of each weight file for a directory."""
    if source.path.is_file():
        return {"sha256": sha256_file(source.path)}
    return {"sha256": {file.name: sha256_file(file) for file in sorted(source.path.glob("*.safetensors"))}}


def model_card(name: str, metadata: dict[str, Any], account: MergeAccount) -> str:
    """A model card in Markdown."""
    architecture, pixels = metadata["architecture"], metadata["preprocessing"]
    necks = ", ".join(metadata.get("trained_necks", ()))
    texts = ""
    if text := metadata.get("text"):
        texts = f"| text student | {text['backbone']}, {text['context_length']} tokens, padded as {text['padding']} |\n"
    trained = f"| necks trained with the student | {necks} |\n" if necks else ""
    lines = "\n".join(f"    {line}" for line in account.lines())
    return f"""# {name}

EfficientSAM3: SAM3 whose image trunk is the student `{architecture["backbone"]}`. Made by efficientsam3
{metadata["versions"]["efficientsam3"]}.

| | |
|---|---|
| student | `{metadata["student"]["file"]}` |
| SAM3 | `{metadata["sam3"]["file"]}` |
| input | {pixels["image_size"]} pixels, {pixels["resize"]}, mean {pixels["mean"]}, std {pixels["std"]} |
| embedding | {architecture["embed_dim"]} x {architecture["embed_size"]} x {architecture["embed_size"]} |
| head | {architecture["head"]} |
| parts | {", ".join(metadata["parts"])} |
{texts}{trained}| weights | {metadata["dtype"]} |

The SHA-256 of both sources are in the metadata.

## Use

```python
from efficientsam3 import EfficientSAM3

model = EfficientSAM3.from_pretrained("{name}")
image = model.encode("image.jpg")
image.segment(text="a dog")
```

## Account

{lines}

## Licence

All weights but the student's are SAM3's and stay under Meta's SAM licence, which must accompany them wherever they
are passed on. The student was distilled from SAM3's outputs.
"""
