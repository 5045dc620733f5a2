import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientsam3.train.sampler import PADDING, EpochSampler


def sampler(count: int, window: int, world_size: int, rank: int = 0) -> EpochSampler:
    file_order = np.random.default_rng(5).permutation(count)
    return EpochSampler(count, world_size, rank, 1, file_order, window)


def order(count: int, window: int, world_size: int, rank: int = 0, epoch: int = 0, position: int = 0) -> list[int]:
    own = sampler(count, window, world_size, rank)
    own.set_epoch(epoch, position)
    taken = list(own)
    assert len(own) == len(taken)
    return taken


def together(shares: list[list[int]]) -> list[int]:
    """What several processes take, in the order in which they do."""
    return [item for turn in zip(*shares, strict=True) for item in turn if item != PADDING]


windows = st.integers(0, 70)


@settings(deadline=None)
@given(count=st.integers(1, 60), window=windows, world_size=st.integers(1, 4))
def test_every_image_once_an_epoch_over_all_processes(count: int, window: int, world_size: int) -> None:
    shares = [order(count, window, world_size, rank) for rank in range(world_size)]
    assert sorted(together(shares)) == list(range(count))


@settings(deadline=None)
@given(count=st.integers(1, 60), window=windows, before=st.integers(1, 4), after=st.integers(1, 4), data=st.data())
def test_another_number_of_processes_goes_on_at_a_position(
    count: int, window: int, before: int, after: int, data: st.DataObject
) -> None:
    shares = [order(count, window, before, rank, epoch=3) for rank in range(before)]
    taken = data.draw(st.integers(0, len(shares[0])))
    seen = together([share[:taken] for share in shares])
    rest = together([order(count, window, after, rank, 3, min(count, taken * before)) for rank in range(after)])
    assert [*seen, *rest] == order(count, window, 1, epoch=3)


def test_neighbours_stay_together_but_not_in_order() -> None:
    place = {item: index for index, item in enumerate(np.random.default_rng(5).permutation(40).tolist())}
    found = np.array([place[item] for item in order(40, 5, 1)]).reshape(8, 5)
    assert all(len(set(window // 5)) == 1 for window in found)
    assert all(np.any(np.diff(window) < 0) for window in found)
    assert (found[:, 0] // 5).tolist() != list(range(8))


def test_each_epoch_has_its_own_order_and_the_same_one_again() -> None:
    for window in (0, 10):
        assert order(40, window, 1, epoch=1) != order(40, window, 1)
        assert order(40, window, 1) == order(40, window, 1)
