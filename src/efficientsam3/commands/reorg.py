"""`efficientsam3 reorg`: make a dataset out of Meta's tars or extracted folders."""

import sys

from efficientsam3.data.requests import ReorganiseRequest

REQUEST = ReorganiseRequest


def run(request: ReorganiseRequest) -> None:
    """Reorganise and print the counts; exit code 1 if anything was skipped."""
    from efficientsam3.data.sa1b.reorganise import SKIPPED_FILE, reorganise

    report = reorganise(
        request.source_or_output,
        request.output,
        request.val_ratio,
        request.workers,
        request.mode_or_default,
        request.delete_tars,
    )
    print(f"{request.output}: {report.placed} pairs put in place, {report.kept} there already")
    if report.skipped:
        print(f"{len(report.skipped)} files skipped, with reasons in {request.output / SKIPPED_FILE}")
        sys.exit(1)
