"""See faults.fault."""

from faults.fault import each
from faults.rows.download import ROWS

test_fault = each(ROWS)
