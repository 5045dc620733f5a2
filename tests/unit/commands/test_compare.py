import pytest

from efficientsam3.benchmark.requests import CompareRequest
from efficientsam3.cli import main


def test_tables_hold_the_published_and_the_unpublished_figures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["compare", "--student", "es_rv_m"]) == 0
    printed = capsys.readouterr().out
    for figure in (
        "860.06M",
        "461.84M",
        "446.24M",
        "353.72M",
        "7.77M",
        "98.32%",
        "9.96M",
        "17.74M",
        "37.40",
        "2699.29",
    ):
        assert figure in printed
    assert "es_tv_s" not in printed
    assert "…" not in printed  # nothing is cut off at the narrowest usual terminal


def test_all_nine_are_the_default() -> None:
    assert CompareRequest().student == ("all",)
