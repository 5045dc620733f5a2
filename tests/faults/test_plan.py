"""See faults.fault."""

from faults.fault import each
from faults.rows.plan import ROWS

test_fault = each(ROWS)
