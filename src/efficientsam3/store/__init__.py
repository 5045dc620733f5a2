"""The embedding store: a folder with one fixed-size record per image. docs/store.md describes the format.

Read `shards` first: the files of a shard, and what commits a record; then `binding`, which ties records to their ids.
`records` and `codecs` say what a record contains (`encodings`, `quantise` and `projection` do the computing), and
`manifest` what all shards share. `writer` appends durably; `reader` gives random access by image id, through `index`;
`scan` reads a shard front to back. `statistics` keeps the mean and variance of each channel, which `gather` computes
for records that have none. `repair` verifies and repairs; `maintenance` describes, binds and merges; `convert`
re-encodes; `advise` measures the codecs. `requests` describes the arguments of `efficientsam3 store`.
"""
