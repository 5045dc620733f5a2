"""See faults.fault."""

from faults.fault import each
from faults.rows.config import ROWS

test_fault = each(ROWS)
