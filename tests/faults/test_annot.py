"""See faults.fault."""

from faults.fault import each
from faults.rows.annot import ROWS

test_fault = each(ROWS)
