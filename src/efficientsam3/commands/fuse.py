"""`efficientsam3 fuse`: the same model, faster, for inference alone."""

from efficientsam3.commands.merge import print_account
from efficientsam3.merge.request import FuseRequest

REQUEST = FuseRequest


def run(request: FuseRequest) -> None:
    """Fuse, and print the account."""
    from efficientsam3.merge.fuse import fuse

    print_account(fuse(request.model, request.output, request.overwrite))
