"""A process that fails among others."""

from pathlib import Path

from two_processes import fork_two
from unit.runtime.fail_on_two import fail_beside_a_waiting_peer


def test_an_error_is_not_held_back_by_the_group(tmp_path: Path) -> None:
    fork_two(fail_beside_a_waiting_peer, str(tmp_path))
    seconds, _, message = (tmp_path / "0").read_text().partition(" ")
    assert message == "only here"
    assert float(seconds) < 90
    assert "Process 1 of 2 has lost another" in (tmp_path / "1").read_text()
