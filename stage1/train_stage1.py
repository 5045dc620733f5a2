"""The documented entry point of `efficientsam3 train`; also under torchrun."""

import sys

from efficientsam3.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
