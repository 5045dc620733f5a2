"""What a run leaves in a store when it is killed."""

from dataclasses import replace

from efficientsam3.store.binding import Binding
from efficientsam3.store.shards import Shard


def cut_keys(shard: Shard, count: int, torn: bytes = b"") -> None:
    """End a shard's key file after `count` lines and a torn one, as a power cut does: no more were promised."""
    header = Binding(shard).header
    assert header is not None
    with shard.bound_path.open("r+b") as file:
        file.write(replace(header, committed=count).pack())
    lines = shard.keys_path.read_bytes().splitlines(keepends=True)
    shard.keys_path.write_bytes(b"".join(lines[:count]) + torn)
