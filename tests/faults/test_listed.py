"""Every listed fault has one row or a reason; the other rows say that they are new."""

import importlib
import pkgutil
import re

import faults.rows
from faults.tally import read_table


def test_every_listed_fault_has_one_row_or_a_reason() -> None:
    modules = [
        importlib.import_module(f"faults.rows.{found.name}") for found in pkgutil.iter_modules(faults.rows.__path__)
    ]
    cases = [row.case for module in modules for row in getattr(module, "ROWS", [])]
    assert len(cases) == len(set(cases))
    listed = {row["case"] for row in read_table("listed.tsv")}
    reasons = {row["case"]: row["reason"] for row in read_table("not_tried.tsv")}
    assert not reasons.keys() & set(cases)
    assert all(len(reason) > 20 for reason in reasons.values())
    assert len(reasons) <= 20
    assert listed == {case for case in cases if not case.startswith("new-")} | reasons.keys()
    assert all(re.fullmatch(r"new-[a-z]+-\d+", case) for case in cases if case not in listed)
