"""Download SA-1B's tars by the links that Meta issues: the command `efficientsam3 download`."""

import sys

from efficientsam3.cli import main

if __name__ == "__main__":
    sys.exit(main(["download", *sys.argv[1:]]))
