"""See faults.fault."""

from faults.fault import each
from faults.rows.env import ROWS

test_fault = each(ROWS)
