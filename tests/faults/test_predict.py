"""See faults.fault."""

from faults.rows.predict import ROWS

from faults.fault import each

test_fault = each(ROWS)
