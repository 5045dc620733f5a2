import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientsam3.distill.sampler import WindowSampler


def order(count: int, window: int, world_size: int, rank: int = 0, epoch: int = 0) -> list[int]:
    file_order = np.random.default_rng(5).permutation(count)
    sampler = WindowSampler(range(count), file_order, window, world_size, rank, seed=1)  # type: ignore[arg-type]
    sampler.set_epoch(epoch)
    assert len(sampler) == -(-count // world_size)
    return list(sampler)


@settings(deadline=None)
@given(count=st.integers(1, 60), window=st.integers(1, 70), world_size=st.integers(1, 4))
def test_every_record_once_an_epoch_over_all_processes(count: int, window: int, world_size: int) -> None:
    shares = [order(count, window, world_size, rank) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    together = [item for step in zip(*shares, strict=True) for item in step]
    assert sorted(together[:count]) == list(range(count))


def test_neighbours_stay_together_but_not_in_order() -> None:
    place = {item: index for index, item in enumerate(np.random.default_rng(5).permutation(40).tolist())}
    windows = np.array([place[item] for item in order(40, 5, 1)]).reshape(8, 5)
    assert all(len(set(window // 5)) == 1 for window in windows)
    assert all(np.any(np.diff(window) < 0) for window in windows)
    assert (windows[:, 0] // 5).tolist() != list(range(8))


def test_each_epoch_has_its_own_order_and_the_same_one_again() -> None:
    assert order(40, 10, 1, epoch=1) != order(40, 10, 1)
    assert order(40, 10, 1) == order(40, 10, 1)
