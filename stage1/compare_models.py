"""Compare the students' sizes with SAM3's: python stage1/compare_models.py --student all."""

import sys

from efficientsam3.cli import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
