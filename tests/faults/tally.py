"""A plugin of pytest that counts the rows of `listed.tsv`: listed, tried, held. `make faults` uses it."""

import csv
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_outcomes: dict[str, bool] = {}


def read_table(name: str) -> list[dict[str, str]]:
    """The lines of one of this folder's tables of tab-separated values."""
    with (_HERE / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note how each row ended."""
    name, _, case = report.nodeid.partition("test_fault[")
    if name and case and not report.skipped:
        case = case.removesuffix("]")
        _outcomes[case] = _outcomes.get(case, True) and report.passed


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the counts, and what was not tried."""
    listed = {row["case"]: row for row in read_table("listed.tsv")}
    reasons = {row["case"]: row["reason"] for row in read_table("not_tried.tsv")}
    tried = listed.keys() & _outcomes.keys()
    failing_before = {case for case, row in listed.items() if row["before"] == "fails"}
    write = terminalreporter.write_line
    write("")
    write(f"faults: {len(listed)} listed, {len(tried)} tried, {sum(_outcomes[case] for case in tried)} held")
    write(
        f"of the {len(failing_before)} that did not hold before: {len(failing_before & tried)} tried, "
        f"{sum(_outcomes[case] for case in failing_before & tried)} held"
    )
    new = _outcomes.keys() - listed.keys()
    write(f"new: {len(new)} tried, {sum(_outcomes[case] for case in new)} held")
    for case in listed.keys() - tried:
        write(f"not tried: {case} ({listed[case]['what']}): {reasons.get(case, 'no reason is given')}")
