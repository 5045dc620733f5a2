"""Imports what the commands import, once, before their processes are forked. It computes nothing."""

import importlib
import pkgutil

import efficientsam3

for _module in pkgutil.walk_packages(efficientsam3.__path__, "efficientsam3."):
    # Not the aliases of published import paths, which warn, nor a script that runs where it is imported.
    if not _module.name.startswith(("efficientsam3.deploy", "efficientsam3.distill.")) and "coreml" not in _module.name:
        importlib.import_module(_module.name)
for _name in ("transformers.models.sam3.modeling_sam3", "transformers.models.sam3_tracker.modeling_sam3_tracker"):
    importlib.import_module(_name)
importlib.import_module("torch.utils.tensorboard")
