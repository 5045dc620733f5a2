"""See faults.fault."""

from faults.fault import each
from faults.rows.store import ROWS

test_fault = each(ROWS)
