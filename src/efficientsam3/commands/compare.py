"""`efficientsam3 compare`: the sizes of the students and of SAM3."""

from efficientsam3.benchmark.requests import CompareRequest

REQUEST = CompareRequest


def run(request: CompareRequest) -> None:
    """Print the tables."""
    from efficientsam3.benchmark.parameter_tables import comparison_tables
    from efficientsam3.benchmark.parameters import compare_models
    from efficientsam3.runtime.console import Console

    console = Console()
    for table in comparison_tables(compare_models(request.student, request.sam3_ckpt, request.head)):
        console.print(table)
