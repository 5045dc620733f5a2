"""See faults.fault."""

from faults.rows.serve import ROWS

from faults.fault import each

test_fault = each(ROWS)
