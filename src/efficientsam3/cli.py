"""`efficientsam3 COMMAND`: one table, from command to the module that has its request and calls its function."""

import argparse
import atexit
import importlib
import signal
import sys
from collections.abc import Sequence
from types import FrameType, ModuleType

import efficientsam3
from efficientsam3.commands.arguments import fill_parser, run_request
from efficientsam3.runtime.endings import run_to_the_end
from efficientsam3.runtime.signals import handled

# In the order in which data passes through them. Each command has a module in `commands`.
COMMANDS = {
    "download": "download SA-1B's archives by the links that Meta issues",
    "reorg": "arrange SA-1B's archives or folders as images/{train,val} and annotations/{train,val}",
    "data": "check a dataset, or write further views of its images",
    "distill": "from a folder of images to a merged model: plan, embed, train, evaluate and merge in one",
    "plan": "estimate the disk space, memory and time that embedding a dataset will take",
    "embed": "run the teacher over the dataset once and store its embeddings",
    "store": "look after an embedding store: info, verify, bind, convert, merge-shards, export-missing-list, "
    "statistics, advise",
    "train": "train a student to reproduce the stored embeddings",
    "text": "distil SAM3's text encoder: phrases, embed, train, evaluate",
    "merge": "put a trained student in the place of SAM3's image trunk",
    "fuse": "fuse a merged model for faster inference: BatchNorms into convolutions, branches into one",
    "export-onnx": "write a merged model as ONNX graphs, verified to compute the same",
    "export-coreml": "write a merged model's image encoder as a CoreML package for Apple's devices",
    "predict": "segment images by text, box and point prompts",
    "serve": "prompt ONNX graphs in the browser, on a page served from this machine",
    "evaluate": "measure masks against ground truth, of several models in one table",
    "benchmark": "measure where the time goes on this machine",
    "compare": "print how many parameters and multiply-accumulates the students save",
}
ALIASES = {"export": "embed"}  # names of commands from before they were renamed


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments, by default those of the process.

    Returns:
        0, or 2 with one sentence on stderr when something outside the program is wrong; see `run_to_the_end`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    command = argv[0] if argv and not argv[0].startswith("-") else ""
    # As an exception, it closes files, writes queues and removes temporary files on the way out.
    with handled((signal.SIGTERM,), _exit):
        code = run_to_the_end(f"efficientsam3 {command}".rstrip(), lambda: _run(argv), debug="--debug" in argv)
    # Python's own exit, which ends what is left, is not to be interrupted by one.
    atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)
    return code


def _run(argv: Sequence[str]) -> None:
    run_request(build_parser(argv[0] if argv else None).parse_args(argv))


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands; given the command that will run, only that one's arguments are filled in."""
    parser = argparse.ArgumentParser(
        prog="efficientsam3",
        description="Replace SAM3's image trunk by a student of a hundredth of its size, command by command.",
        epilog="`efficientsam3 COMMAND --help` describes one command; the README walks through them.",
    )
    parser.add_argument("-V", "--version", action="version", version=efficientsam3.__version__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        aliases = [old for old, new in ALIASES.items() if new == name]
        description = f"{summary[0].upper()}{summary[1:]}."
        sub = subparsers.add_parser(name, aliases=aliases, help=summary, description=description)
        if command in (name, *aliases):
            # The other modules stay unloaded.
            fill_parser(sub, _module(name))
            sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _exit(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _module(command: str) -> ModuleType:
    return importlib.import_module(f"efficientsam3.commands.{ALIASES.get(command, command).replace('-', '_')}")
