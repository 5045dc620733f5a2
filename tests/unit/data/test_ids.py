import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from efficientsam3.data.ids import ids_from_tensor, ids_to_tensor


@given(st.lists(st.binary(min_size=1, max_size=9).filter(lambda value: value[-1] != 0)), st.integers(1, 2))
def test_ids_come_back(values: list[bytes], stride: int) -> None:
    ids = np.array(values, dtype="S9")[::stride]  # a strided array is not contiguous
    table = ids_to_tensor(ids)
    assert table.shape == (len(ids), 9)
    assert ids_from_tensor(table).tolist() == ids.tolist()


def test_the_way_back_is_a_view() -> None:
    table = ids_to_tensor(np.array([b"sa_1", b"sa_2"]))
    assert ids_from_tensor(table).ctypes.data == table.data_ptr()
