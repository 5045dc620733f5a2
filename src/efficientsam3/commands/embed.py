"""`efficientsam3 embed`: run the teacher over the dataset and store its embeddings."""

from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field

from efficientsam3.commands.arguments import ConfiguredRequest, config_key, read_config
from efficientsam3.config.schema import ExportConfig
from efficientsam3.runtime.request import Argument, CountOrZero, Folder


class TeacherRequest(ConfiguredRequest):
    """The teacher, and the dataset to embed."""

    output: Folder | None = config_key("OUTPUT", schema=ExportConfig)
    resume: Annotated[Path | None, Argument("TEACHER")] = config_key("MODEL.RESUME", schema=ExportConfig)
    compile_teacher: bool | None = config_key("MODEL.COMPILE", True, schema=ExportConfig)


class EmbedRequest(TeacherRequest):
    """The dataset to embed, or the store to check."""

    check_saved_embed: bool = Field(
        False, description="write nothing: recompute stored embeddings with the teacher and compare"
    )
    check_samples: CountOrZero = Field(0, description="with --check-saved-embed: compare N images; 0, the default: all")


REQUEST = EmbedRequest


def run(request: EmbedRequest) -> None:
    """Embed, or check what is stored."""
    # Before PyTorch is imported, which takes seconds: a mistyped key is named at once.
    config = read_config(ExportConfig, request)

    from efficientsam3.embed.plan import check_space, missing_images, plan_embedding
    from efficientsam3.embed.run import embed_dataset
    from efficientsam3.embed.verify import check_saved_embeddings
    from efficientsam3.runtime.device import select_device
    from efficientsam3.runtime.run import check_unused, run_step, write_config

    if request.dry_run is not None:
        plan = plan_embedding(config)
        if not request.check_saved_embed:
            check_space(plan, missing_images(plan))
            check_unused(config.output_dir)
        select_device(config.DEVICE, request.dry_run - 1)
        return
    with run_step(config.DEVICE, config.output_dir, writes=not request.check_saved_embed) as process:
        plan = plan_embedding(config)
        if request.check_saved_embed:
            check_saved_embeddings(plan, process, request.check_samples)
        else:
            embed_dataset(plan, process, partial(write_config, config, config.output_dir))
