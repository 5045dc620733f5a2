"""EfficientSAM3: SAM3 with a distilled image encoder.

Importing this package is cheap: neither PyTorch nor transformers is loaded by it. The student backbone registers itself
with transformers' Auto classes as soon as those are imported, so that `Sam3Model.from_pretrained` reads a merged model
after `import efficientsam3`.
"""

from typing import Any

import wrapt

__version__ = "0.1.0"


@wrapt.when_imported("transformers.models.auto.modeling_auto")
def _register_backbone(_: Any) -> None:
    from efficientsam3.models.hf_backbone import register

    register()
