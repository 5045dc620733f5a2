"""See faults.fault."""

from faults.fault import each
from faults.rows.onnx import ROWS

test_fault = each(ROWS)
