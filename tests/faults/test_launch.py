"""See faults.fault."""

from faults.fault import each
from faults.rows.launch import ROWS

test_fault = each(ROWS)
