"""The published shell scripts: macOS has bash 3.2, and Slurm's machines read their script before anything runs."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPTS = sorted((ROOT / "stage1" / "scripts").iterdir())
# What bash 3.2 does not have, or has and does otherwise; by an example of each.
NEWER = {
    r"\b(mapfile|readarray|coproc)\b": "mapfile -t lines",
    r"\b(declare|local|typeset)\s+-\w*[Agnlu]": "declare -A table",
    r"\$\{!?\w+(\[[^]]*\])?(,,?|\^\^?|@)": "${name,,}",
    r"\[[@*]\]": '"${flags[@]}"',  # an empty array is an unset variable to set -u before 4.4
    r"\|&": "train |& tee log",
    r"&>>": "train &>> log",
    r";;?&": "a) true ;;&",
    r"\[\[\s.*-v\s": "[[ -v name ]]",
    r"\bwait\s+-[np]\b": "wait -n",
    r"%\(.*\)T": "printf '%(%F)T'",
    r"\{\w+\.\.\w+\.\.\w+\}": "{1..9..2}",
    r"\b(EPOCHSECONDS|EPOCHREALTIME|BASHPID|SRANDOM)\b": "$EPOCHSECONDS",
    r"\b(globstar|lastpipe|inherit_errexit)\b": "shopt -s globstar",
    r"\{\w+\}[<>]": "exec {file}>log",
    r"\$\{\w+:[^}]*:\s*-\d": "${name:0:-1}",
}


def code_of(script: Path) -> str:
    return "\n".join(line for line in script.read_text().splitlines() if not line.lstrip().startswith("#"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_bash_reads_it_and_it_has_nothing_newer_than_what_macos_has(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    found = [pattern for pattern in NEWER if re.search(pattern, code_of(script))]
    assert found == []


def test_what_is_newer_is_found() -> None:
    for pattern, example in NEWER.items():
        assert re.search(pattern, example), example


def test_slurm_starts_one_launcher_a_machine_and_all_meet_on_the_first(tmp_path: Path) -> None:
    [script] = [path for path in SCRIPTS if path.suffix == ".sbatch"]
    for name, text in (("scontrol", "printf 'gpu07\\ngpu08\\n'"), ("srun", 'echo "$@"; env')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "gpu[07-08]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "123456"}
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_GPUS_ON_NODE": "4", **slurm}
    done = subprocess.run(
        ["bash", script, "OUTPUT=a b", "--tag", "x"], env=environment, capture_output=True, text=True, check=True
    )
    command, *variables = done.stdout.splitlines()
    assert command == "bash stage1/scripts/train_stage1_student.sh OUTPUT=a b --tag x"
    expected = {"NNODES=2", "GPUS=4", "RDZV_ENDPOINT=gpu07:23456", "RDZV_ID=123456"}
    assert expected <= set(variables)


def test_no_documented_line_waits_in_every_batch_norm() -> None:
    """See docs/gpu.md: SyncBatchNorm helps where a GPU has few images."""
    commands = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("    ")]
    assert any("train_stage1_student.sh" in line for line in commands)
    assert not [line for line in commands if "--use-sync-bn" in line]
