"""What is exported, opened."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from efficientsam3.checkpoints.necks import read_trained_necks
from efficientsam3.export.source import read_source
from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.decoders import Sam3Decoder
from efficientsam3.sam3.necks import load_neck


def test_a_student_with_trained_necks_is_exported_merged(
    tiny_sam3_path: Path, with_trained_necks: Callable[..., Path], merged_with_necks: Path
) -> None:
    with pytest.raises(UserError, match=r"an image encoder alone would leave behind: merge it"):
        read_source(with_trained_necks())
    (graph,) = (graph for graph in read_source(merged_with_necks).graphs if graph.name == "interactive_neck")
    necks = read_trained_necks(with_trained_necks())
    assert necks is not None
    decoder, (embedding,) = Sam3Decoder(tiny_sam3_path, torch.device("cpu")), graph.inputs.values()
    expected = decoder.behind(load_neck(decoder.neck, necks, "tracker", "", "")).features(embedding)
    for found, level in zip(graph.run(graph.inputs).values(), expected, strict=True):
        torch.testing.assert_close(found, level, rtol=1e-5, atol=1e-5)
