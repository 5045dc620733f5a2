"""Where gloo listens: by itself at the address of the machine's own name, which other machines may not reach."""

import os
import sys
from collections.abc import Callable

import pytest

from efficientsam3.runtime import distributed
from efficientsam3.runtime.environment import Place
from efficientsam3.runtime.network import address_towards, interface_of, is_loopback

Choose = Callable[..., str | None]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere interfaces are not looked up")
def test_this_machine_reaches_itself_by_its_loopback_interface() -> None:
    assert address_towards("localhost") in ("127.0.0.1", "::1")
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None  # nobody's: RFC 5737
    assert interface_of("2001:db8::1%eth0") is None  # RFC 3849
    assert is_loopback("127.0.1.1")
    assert not is_loopback("192.0.2.1")


def test_a_name_that_is_not_found_leads_nowhere() -> None:
    assert address_towards("nohost.invalid") is None
    assert address_towards("x" * 300) is None


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Choose:
    """The interface that a process of two chooses, from whence which host is reached, and the other's address."""

    def choose(ways: dict[str, str | None], other: str, given: str = "") -> str | None:
        monkeypatch.setenv("MASTER_ADDR", "master")
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", given)
        monkeypatch.setattr(distributed, "address_towards", ways.get)
        monkeypatch.setattr(distributed, "interface_of", lambda address: f"interface of {address}")
        store = Store({"address/1": other})
        distributed._choose_interface(store, Place(rank=0, local_rank=0, world_size=2))
        return os.environ["GLOO_SOCKET_IFNAME"]

    return choose


class Store(dict[str, str]):
    """The processes' store."""

    def set(self, key: str, value: str) -> None:
        self[key] = value

    def get(self, key: str) -> bytes:  # type: ignore[override]
        return self[key].encode()


def test_gloo_listens_where_the_way_to_the_master_begins(choose: Choose) -> None:
    assert choose({"master": "10.0.0.2"}, "10.0.0.1") == "interface of 10.0.0.2"


def test_the_master_itself_listens_where_the_way_to_another_machine_begins(choose: Choose) -> None:
    """Its own name often belongs to 127.0.1.1."""
    ways = {"master": "127.0.0.1", "10.0.0.2": "10.0.0.1"}
    assert choose(ways, "10.0.0.2") == "interface of 10.0.0.1"
    assert choose(ways, "127.0.0.1") == "interface of 127.0.0.1"  # all on one machine


def test_what_the_user_says_counts_and_what_is_not_known_is_left_to_gloo(choose: Choose) -> None:
    assert choose({"master": "10.0.0.2"}, "", given="eth7") == "eth7"
    assert choose({"master": None}, "") == ""
