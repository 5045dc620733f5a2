"""See faults.fault."""

from faults.fault import each
from faults.rows.merge import ROWS

test_fault = each(ROWS)
