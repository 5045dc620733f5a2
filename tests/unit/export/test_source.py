"""What is exported, opened."""

from collections.abc import Callable
from pathlib import Path

import pytest

from efficientsam3.export.source import read_source
from efficientsam3.merge.run import merge
from efficientsam3.runtime.errors import UserError


def test_a_student_with_trained_necks_is_exported_merged(
    tiny_sam3_path: Path, with_trained_necks: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"an image encoder alone would leave behind: merge it"):
        read_source(with_trained_necks())
    merge(with_trained_necks(), tiny_sam3_path, tmp_path / "merged.pt")
    assert "tracker_neck" in {graph.name for graph in read_source(tmp_path / "merged.pt").graphs}
