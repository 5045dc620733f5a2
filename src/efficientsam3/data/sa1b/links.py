"""Meta's file of download links, and which tars the published subsets are."""

from importlib import resources
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from efficientsam3.data.sa1b.tars import SAFE_NAME
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.files import read_bytes

Subset = Literal["all", "10p", "1p"]
HEADER = ["file_name", "cdn_link"]
_MAX_BYTES = 16 << 20
SOURCE = "https://ai.meta.com/datasets/segment-anything-downloads/"


def read_links(path: Path) -> dict[str, str]:
    """Read a tab-separated file with the header `file_name<TAB>cdn_link`, as Meta issues it with its licence.

    Returns:
        Link by file name, in the file's order.

    Raises:
        UserError: the file is missing or has another format, a name is unsafe, or a link is not http(s).
    """
    try:
        lines = read_bytes(path, _MAX_BYTES).decode("utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"--links {path} cannot be read: {error.strerror}; get the file from {SOURCE}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--links {path} is not a text file: get it from {SOURCE}.") from error
    if not lines or lines[0].split("\t") != HEADER:
        raise UserError(f"--links {path} does not begin with {'<TAB>'.join(HEADER)}: get the file from {SOURCE}.")
    links: dict[str, str] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        name, _, link = line.partition("\t")
        if not SAFE_NAME.fullmatch(name) or name in links:
            raise UserError(f"Line {number} of --links {path} has {name!r}, which is unsafe or repeated: correct it.")
        try:
            _check_link(link)
        except ValueError as error:
            raise UserError(
                f"Line {number} of --links {path} has no http(s) link for {name} ({error}): get the file from {SOURCE}."
            ) from error
        links[name] = link
    return links


def _check_link(link: str) -> None:
    """Raises ValueError for what cannot be requested."""
    if not all("!" <= letter <= "~" for letter in link):
        raise ValueError("it has a space or a letter that is not ASCII")
    parts = urlsplit(link)
    if parts.scheme not in {"http", "https"}:
        raise ValueError(f"it begins with {parts.scheme or 'nothing'}:")
    if not parts.hostname or parts.port == 0:  # reading the port checks it
        raise ValueError("it names no server")


def subset_names(subset: Subset) -> list[str] | None:
    """The tars of a published subset: 100 for `10p`, 10 for `1p`; None for `all`, which means every tar with a link."""
    if subset == "all":
        return None
    return resources.files(__package__).joinpath(f"sa-1b-{subset}.txt").read_text(encoding="utf-8").split()


def select_links(links: dict[str, str], subset: Subset) -> dict[str, str]:
    """The links of a subset.

    Raises:
        UserError: a tar of the subset has no link.
    """
    names = subset_names(subset)
    if names is None:
        return {name: link for name, link in links.items() if name.endswith(".tar")}
    missing = [name for name in names if name not in links]
    if missing:
        raise UserError(
            f"--links has no link for {missing[0]} ({len(missing)} of the {len(names)} tars of {subset} are missing): "
            f"get the whole file from {SOURCE}."
        )
    return {name: links[name] for name in names}
