"""The old import path of a training, now `train.run`."""

from efficientsam3.train.run import train

__all__ = ["train"]
