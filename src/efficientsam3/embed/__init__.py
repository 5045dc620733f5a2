"""Embedding a dataset: the teacher over every image, once, into a store.

`plan` turns the configuration into a checked plan, and nothing below it takes a configuration. `batches` is the teacher
at work, `pipeline` keeps teacher, copies and disk at work at the same time, `setup` begins the store, `run` fills it,
`verify` compares it with the teacher, and `estimate` measures what a run will take.
"""
