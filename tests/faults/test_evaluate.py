"""See faults.fault."""

from faults.fault import each
from faults.rows.evaluate import ROWS

test_fault = each(ROWS)
