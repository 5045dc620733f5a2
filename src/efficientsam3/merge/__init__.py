"""Putting a student in the place of SAM3's image trunk, verified and accounted for.

`request` says what can be asked for and `run` does it: it reads and checks the `inputs`, makes the `account` of every
tensor, and calls a writer, `native_file` or `hf_directory`, each of which has `verify` read the output back before it
replaces anything. `card` describes the result. `fuse` rewrites a merged model with its student fused.
"""
