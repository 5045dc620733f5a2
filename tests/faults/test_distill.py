"""See faults.fault."""

from faults.fault import each
from faults.rows.distill import ROWS

test_fault = each(ROWS)
