"""See faults.fault."""

from faults.fault import each
from faults.rows.coreml import ROWS

test_fault = each(ROWS)
