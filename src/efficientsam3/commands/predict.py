"""`efficientsam3 predict`: masks for images, by text, boxes and points."""

from efficientsam3.predict.request import PredictRequest

REQUEST = PredictRequest


def run(request: PredictRequest) -> None:
    """Prompt the images, and print what was found."""
    from efficientsam3.data.find import find_images
    from efficientsam3.predict.files import predict_files
    from efficientsam3.runtime.console import Console
    from efficientsam3.sam3.prompts import ConceptPrompt

    report = predict_files(
        request.model,
        find_images(request.images),
        request.prompts,
        request.out,
        threshold=request.threshold,
        max_hole_area=request.max_hole_area,
        device=request.device,
        variant=request.variant,
        overwrite=request.overwrite,
    )
    console = Console(soft_wrap=True)
    for path, count in report.written.items():
        console.print(f"{count:4d} object{'s' if count != 1 else ' '}  {path}")
    if any(isinstance(prompt, ConceptPrompt) for prompt in request.prompts) and 0 in report.written.values():
        console.print(
            f"Where there are none, nothing scored {request.threshold:g} or more: ask otherwise, or lower --threshold."
        )
    for broken in report.broken:
        console.print(f"     skipped  {broken}, which cannot be read")
