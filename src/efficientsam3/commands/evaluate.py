"""`efficientsam3 evaluate`: how good the masks are, of several models in one table."""

from efficientsam3.evaluate.masks.request import EvaluationRequest

REQUEST = EvaluationRequest


def run(request: EvaluationRequest) -> None:
    """Measure, and print the table."""
    from efficientsam3.evaluate.report.score_tables import explanation_tables, score_tables, text_table
    from efficientsam3.evaluate.run import evaluate_masks
    from efficientsam3.runtime.console import Console

    evaluation = evaluate_masks(request)
    measurement = evaluation.measurement
    console = Console(soft_wrap=True)
    for table in score_tables(evaluation.summaries, measurement.images):
        Console().print(table.for_terminal())
    if evaluation.texts:
        Console().print(text_table(evaluation.texts).for_terminal())
    for table in [] if evaluation.explanation is None else explanation_tables(evaluation.explanation):
        Console().print(table.for_terminal())
    if measurement.broken:
        console.print(f"{len(measurement.broken)} images were skipped as broken.")
    if measurement.left_out:
        console.print(f"{len(measurement.left_out)} objects were left out: a prompt could not be asked of them.")
    if measurement.lacking:
        console.print(f"{measurement.lacking} images were skipped because they have no embedding.")
    console.print(f"{evaluation.report} and {evaluation.results.name}, in {evaluation.seconds:.0f} s")
