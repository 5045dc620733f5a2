"""See faults.fault."""

from faults.fault import each
from faults.rows.serve import ROWS

test_fault = each(ROWS)
