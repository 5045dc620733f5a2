"""See faults.fault."""

from faults.fault import each
from faults.rows.images import ROWS

test_fault = each(ROWS)
