"""See faults.fault."""

from faults.fault import each
from faults.rows.predict import ROWS

test_fault = each(ROWS)
