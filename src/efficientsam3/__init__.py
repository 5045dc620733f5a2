"""EfficientSAM3: SAM3 with a distilled image encoder.

Importing this package is cheap: neither PyTorch nor transformers is loaded by it. The student backbone registers itself
with transformers' Auto classes as soon as those are imported, so that `Sam3Model.from_pretrained` reads a merged model
after `import efficientsam3`.
"""

import importlib
from typing import Any

import wrapt

__version__ = "0.1.0"


@wrapt.when_imported("transformers.models.auto.configuration_auto")
def _register_config(_: Any) -> None:
    importlib.import_module("efficientsam3.models.hf_config")


@wrapt.when_imported("transformers.models.auto.modeling_auto")
def _register_model(_: Any) -> None:
    importlib.import_module("efficientsam3.models.hf_backbone")


def __getattr__(name: str) -> Any:
    """Load `EfficientSAM3` and `OnnxSAM3` when they are first asked for (PEP 562)."""
    if name == "EfficientSAM3":
        return importlib.import_module("efficientsam3.sam3.efficientsam3").EfficientSAM3
    if name == "OnnxSAM3":
        return importlib.import_module("efficientsam3.predict.onnx_sam3").OnnxSAM3
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
