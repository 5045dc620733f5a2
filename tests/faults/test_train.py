"""See faults.fault."""

from faults.fault import each
from faults.rows.train import ROWS

test_fault = each(ROWS)
