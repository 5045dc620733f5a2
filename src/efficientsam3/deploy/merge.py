"""The former import path of `merge`."""

from efficientsam3.merge.run import merge

__all__ = ["merge"]
