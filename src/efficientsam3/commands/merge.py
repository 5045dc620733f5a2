"""`efficientsam3 merge`: SAM3 in, EfficientSAM3 out."""

from typing import TYPE_CHECKING

from efficientsam3.merge.request import MergeRequest

if TYPE_CHECKING:
    from efficientsam3.merge.account import MergeAccount

REQUEST = MergeRequest


def run(request: MergeRequest) -> None:
    """Merge, and print the account."""
    from efficientsam3.merge.run import run_merge

    print_account(run_merge(request))


def print_account(account: "MergeAccount") -> None:
    """Print the account of what was written."""
    from efficientsam3.runtime.console import Console

    console = Console(soft_wrap=True)
    for line in account.lines():
        console.print(line)
