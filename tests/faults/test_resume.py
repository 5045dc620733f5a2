"""See faults.fault."""

from faults.fault import each
from faults.rows.resume import ROWS

test_fault = each(ROWS)
