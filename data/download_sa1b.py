"""Download SA-1B's tars by the links that Meta issues: `efficientsam3 download`, see --help."""

import sys

from efficientsam3.cli import main

if __name__ == "__main__":
    sys.exit(main(["download", *sys.argv[1:]]))
