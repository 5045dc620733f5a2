"""See faults.fault."""

from faults.fault import each
from faults.rows.signals import ROWS

test_fault = each(ROWS)
