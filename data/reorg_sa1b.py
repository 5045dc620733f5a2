"""Reorganise SA-1B into images/{train,val} and annotations/{train,val}: `efficientsam3 reorg`, see --help."""

import sys

from efficientsam3.cli import main

if __name__ == "__main__":
    sys.exit(main(["reorg", *sys.argv[1:]]))
