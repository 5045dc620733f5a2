"""Embed, embed again, and check: one of two processes."""

import json
from dataclasses import asdict
from pathlib import Path

from efficientsam3.config.schema import ExportConfig
from efficientsam3.embed.plan import plan_embedding
from efficientsam3.embed.run import embed_dataset
from efficientsam3.embed.verify import check_saved_embeddings
from two_processes import one_of_two


def embed_twice_and_check(rank: int, config: str, output: Path, port: int) -> None:
    """The first process writes what all found to `output`."""
    with one_of_two(rank, port) as process:
        plan = plan_embedding(ExportConfig.model_validate_json(config))
        found = [asdict(result) for result in (embed_dataset(plan, process), embed_dataset(plan, process))]
        found.append(asdict(check_saved_embeddings(plan, process)))
        if process.is_main:
            output.write_text(json.dumps(found))
