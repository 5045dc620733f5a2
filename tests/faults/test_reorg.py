"""See faults.fault."""

from faults.fault import each
from faults.rows.reorg import ROWS

test_fault = each(ROWS)
