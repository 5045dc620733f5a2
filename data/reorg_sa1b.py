"""Reorganise SA-1B into images/{train,val} and annotations/{train,val}: the command `efficientsam3 reorg`."""

import sys

from efficientsam3.cli import main

if __name__ == "__main__":
    sys.exit(main(["reorg", *sys.argv[1:]]))
