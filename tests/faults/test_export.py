"""See faults.fault."""

from faults.fault import each
from faults.rows.export import ROWS

test_fault = each(ROWS)
