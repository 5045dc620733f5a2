"""The old import path of embedding a dataset, now `embed.run.embed_dataset`."""

from efficientsam3.config.schema import ExportConfig
from efficientsam3.embed.plan import plan_embedding
from efficientsam3.embed.run import EmbedSummary, embed_dataset
from efficientsam3.runtime.distributed import Process


def export_embeddings(config: ExportConfig, process: Process) -> EmbedSummary:
    """Plan what `config` asks for, and do it."""
    return embed_dataset(plan_embedding(config), process)
