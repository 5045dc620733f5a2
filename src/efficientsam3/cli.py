"""`efficientsam3 COMMAND`: one table, from command to the module that has its arguments and calls its function."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

import efficientsam3
from efficientsam3.runtime.errors import UserError

# In the order of the way of the data.
COMMANDS = ("export", "train", "compare")
EXIT_USER_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments, by default those of the process.

    Returns:
        0, or 2 with one sentence on stderr when something outside the program is wrong.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    args = build_parser(argv[0] if argv else None).parse_args(argv)
    try:
        _module(args.command).run(args)
    except UserError as error:
        if args.debug:
            raise
        print(f"efficientsam3 {args.command}: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(f"efficientsam3 {args.command}: interrupted", file=sys.stderr)
        return 130
    return 0


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands; given the command that will run, only that one's arguments are filled in."""
    parser = argparse.ArgumentParser(prog="efficientsam3", description=efficientsam3.__doc__)
    parser.add_argument("--version", action="version", version=efficientsam3.__version__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = _module(name)
        sub = subparsers.add_parser(name, help=module.HELP, description=f"{module.HELP[0].upper()}{module.HELP[1:]}.")
        if name == command:
            module.add_arguments(sub)
            sub.add_argument("--debug", action="store_true", help="show the traceback of a refused input")
    return parser


def _module(command: str) -> ModuleType:
    return importlib.import_module(f"efficientsam3.commands.{command}")
