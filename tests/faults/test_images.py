"""See faults.fault."""

from faults.rows.images import ROWS

from faults.fault import each

test_fault = each(ROWS)
