"""See faults.fault."""

from faults.fault import each
from faults.rows.loss import ROWS

test_fault = each(ROWS)
