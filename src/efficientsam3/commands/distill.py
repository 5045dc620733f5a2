"""`efficientsam3 distill`: from a folder of images to a merged model, in one command."""

from efficientsam3.workflow.request import DistillRequest

REQUEST = DistillRequest
EPILOG = (
    "It runs plan, embed, train, evaluate and merge, and prints each one's command as it starts. Interrupt it when you "
    "like: the same command continues where it stopped. Its configurations, OUT/export.yaml and OUT/train.yaml, are "
    "what the single commands take."
)


def run(request: DistillRequest) -> None:
    """Run what is not complete."""
    from efficientsam3.workflow.run import distill

    distill(request)
