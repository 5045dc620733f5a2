"""The documented entry point of `efficientsam3 merge`."""

import sys

from efficientsam3.cli import main

if __name__ == "__main__":
    sys.exit(main(["merge", *sys.argv[1:]]))
