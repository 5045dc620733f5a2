"""The documented entry point of `efficientsam3 embed`; also under torchrun."""

import sys

from efficientsam3.cli import main

if __name__ == "__main__":
    sys.exit(main(["embed", *sys.argv[1:]]))
