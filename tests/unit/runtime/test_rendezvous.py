import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientsam3.runtime import rendezvous
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.rendezvous import KEYS, plan_rendezvous


@pytest.fixture(autouse=True)
def every_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous.socket, "getaddrinfo", lambda *_: [])


def test_one_machine_needs_no_address() -> None:
    plan = plan_rendezvous({"GPUS": "2"})
    assert (plan.processes, plan.world_size) == (2, 2)
    assert plan.arguments == ("--nnodes", "1", "--nproc_per_node", "2", "--standalone")
    assert plan_rendezvous({}).processes == 8


def test_several_machines_meet_at_an_address_and_wait_for_a_time() -> None:
    plan = plan_rendezvous({"GPUS": "4", "NNODES": "2:3", "RDZV_ENDPOINT": "host0:29400", "RDZV_TIMEOUT": "60"})
    assert plan.world_size == 8
    text = " ".join(plan.arguments)
    assert "--nnodes 2:3 --nproc_per_node 4 --rdzv_backend c10d --rdzv_endpoint host0:29400" in text
    assert "join_timeout=60,read_timeout=60" in text
    for endpoint in ("host0", "[::1]:29400", "10.0.0.1:0", "a-b.c:1"):
        plan_rendezvous({"RDZV_ENDPOINT": endpoint})


@pytest.mark.parametrize(
    "values",
    [
        {"GPUS": "0"},
        {"GPUS": "08"},
        {"GPUS": "1 "},
        {"GPUS": "1\n"},
        {"GPUS": "²"},
        {"GPUS": "9" * 5000},
        {"NNODES": "2"},
        {"NNODES": "0"},
        {"NNODES": "3:2", "RDZV_ENDPOINT": "x:1"},
        {"NNODES": "PATH[$(touch pwned)]", "RDZV_ENDPOINT": "x:1"},
        {"MASTER_PORT": "99999"},
        {"MASTER_PORT": "abc"},
        {"NODE_RANK": "1"},
        {"RDZV_TIMEOUT": "0"},
        {"RDZV_ENDPOINT": "::::"},
        {"RDZV_ENDPOINT": "x:99999"},
        {"RDZV_ENDPOINT": "a b:1"},
    ],
)
def test_what_is_wrong_is_named(values: dict[str, str]) -> None:
    (name, *_) = values
    with pytest.raises(UserError, match=f"^{name}="):
        plan_rendezvous(values)


def test_a_taken_port_and_an_unknown_host_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(UserError, match=f"MASTER_PORT={port} cannot be listened on"):
            plan_rendezvous({"MASTER_PORT": port})
    assert "--master_port" in plan_rendezvous({"MASTER_PORT": port}).arguments

    def unknown(*_: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(rendezvous.socket, "getaddrinfo", unknown)
    with pytest.raises(UserError, match="no machine is found by the name nowhere"):
        plan_rendezvous({"RDZV_ENDPOINT": "nowhere:1"})


@given(st.dictionaries(st.sampled_from([key for key in KEYS if key != "MASTER_PORT"]), st.text(max_size=6), max_size=3))
def test_any_text_is_planned_or_refused(values: dict[str, str]) -> None:
    try:
        plan = plan_rendezvous(values)
    except UserError:
        return
    assert plan.world_size >= plan.processes >= 1
