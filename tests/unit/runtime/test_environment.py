import pytest

from efficientsam3.runtime.environment import Place, count_from, place_among_processes, thread_count
from efficientsam3.runtime.errors import UserError

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("text", ["abc", "-1", "1.5", "0x2", "²", "9" * 5000, "1 2"])
def test_what_is_no_count_is_named(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", text)
    with pytest.raises(UserError, match="RANK="):
        place_among_processes()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0 is not a whole number from 1"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK=2 with WORLD_SIZE=2"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "no MASTER_ADDR or MASTER_PORT"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, "no RANK"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "99999"}, "MASTER_PORT=99999"),
    ],
)
def test_what_does_not_fit_together_is_named(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        place_among_processes()


def test_one_process_alone_and_one_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place_among_processes() == Place(0, 0, 1)
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    assert place_among_processes() == Place(1, 0, 2)


def test_threads_may_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert thread_count() == 0
    monkeypatch.setenv("OMP_NUM_THREADS", " 4,2")
    assert thread_count() == 4
    assert count_from("WORLD_SIZE", 3) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "abc")
    with pytest.raises(UserError, match="OMP_NUM_THREADS=abc"):
        thread_count()
