"""See faults.fault."""

from faults.fault import each
from faults.rows.data import ROWS

test_fault = each(ROWS)
