"""See faults.fault."""

from faults.fault import each
from faults.rows.ckpt import ROWS

test_fault = each(ROWS)
