"""See faults.fault."""

from faults.fault import each
from faults.rows.tar import ROWS

test_fault = each(ROWS)
