"""`efficientsam3 download`: fetch SA-1B's tars by the links that Meta issues."""

from efficientsam3.data.requests import DownloadRequest

REQUEST = DownloadRequest


def run(request: DownloadRequest) -> None:
    """Download what is missing."""
    from efficientsam3.data.sa1b.download import download

    count = download(request.links, request.output, request.subset, request.workers)
    print(f"{request.output}: {count} tars downloaded, none is missing")
    print(f"next: python data/reorg_sa1b.py --source {request.output}")
