"""What the launchers in stage1/scripts/ do: start one stage1 script on every process of this machine.

    python -m efficientsam3.workflow.launcher LAUNCHER SCRIPT DEFAULT_CFG [KEY=VALUE | FLAG]...

Keys are arguments or environment variables. Everything else is passed to the script.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from efficientsam3.runtime.endings import run_to_the_end
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.launch import run_alone, run_torchrun
from efficientsam3.runtime.rendezvous import KEYS as PROCESS_KEYS
from efficientsam3.runtime.rendezvous import plan_rendezvous

_FLAGS = {"CFG": "--cfg", "DATA_PATH": "--data-path", "OUTPUT": "--output", "BATCH_SIZE": "--batch-size"}
KEYS = (*_FLAGS, *PROCESS_KEYS)


def launch(script: str, default_cfg: str, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Check everything in one plain process, then start all of them.

    Returns:
        the exit code of the check, or of the script.

    Raises:
        UserError: a key is not known, or a value about processes and machines is wrong.
    """
    values, flags = split_keys(arguments, environment)
    rendezvous = plan_rendezvous(values)
    # In front of the other flags: --opts takes everything that follows it.
    given = [part for key, flag in _FLAGS.items() if values.get(key) for part in (flag, values[key])]
    if not values.get("CFG"):
        given = ["--cfg", default_cfg, *given]
    check = [sys.executable, script, *given, "--dry-run", str(rendezvous.processes), *flags]
    sizes = {"WORLD_SIZE": str(rendezvous.world_size), "LOCAL_WORLD_SIZE": str(rendezvous.processes)}
    code = run_alone(check, sizes).exit_code
    if code != 0:
        return code
    return run_torchrun(rendezvous.processes, [*rendezvous.arguments, script, *given, *flags]).exit_code


def split_keys(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The keys' values, of which an argument beats a variable, and the other arguments.

    Raises:
        UserError: an argument looks like a key and is none.
    """
    values = {key: environment[key] for key in KEYS if key in environment}
    flags = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not (equals and "A" <= key[:1] <= "Z"):
            flags.append(argument)
        elif key in KEYS:
            values[key] = value
        else:
            raise UserError(f"{key} is not a key of the launchers: use {' '.join(KEYS)}, or --opts KEY VALUE.")
    return values, flags


def _main(launcher: str, script: str, default_cfg: str, *arguments: str) -> int:
    codes: list[int] = []
    name = Path(launcher).name
    failed = run_to_the_end(name, lambda: codes.append(launch(script, default_cfg, arguments, os.environ)))
    return failed or codes[0]


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
