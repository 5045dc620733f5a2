"""See faults.fault."""

from faults.fault import each
from faults.rows.compare import ROWS

test_fault = each(ROWS)
