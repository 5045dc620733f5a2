"""Slurm's script on two machines: network namespaces with names, addresses and interfaces of their own."""

import os
import signal
import stat
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.processes import ROOT, environment, marked
from e2e.test_interrupted_training import Training, root  # noqa: F401  a fixture
from faults.system import need_root
from two_processes import fork_two, run_as_one_of_two

# Stand-ins for Slurm's commands: two machines, on each of which srun runs the command at the same time.
SCONTROL = "#!/bin/sh\necho node0\necho node1\n"
SRUN = """#!/bin/sh
for node in 0 1; do
  ip netns exec $NETWORK$node unshare --uts --mount sh -c '
    hostname node'$node' && mount --bind $FOLDER/hosts'$node' /etc/hosts && exec "$@" 2>$FOLDER/said'$node'
  ' sh "$@" & eval process$node=$!
done
wait $process0 && wait $process1
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *" ".join(words).split()], check=True)


@pytest.fixture(params=["127.0.1.1", "192.168.77.{}"], ids=["loopback", "unreachable"])
def network(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Two connected namespaces; each machine's own name belongs to an address that the other does not reach."""
    need_root()
    name = f"e{uuid.uuid4().hex[:6]}-"
    for node in (0, 1):
        own = request.param.format(node + 1)
        hosts = [f"{own} node{node}", f"10.77.0.{2 - node} node{1 - node}", "127.0.0.1 localhost"]
        (tmp_path / f"hosts{node}").write_text("\n".join(hosts) + "\n")
        ip(f"netns add {name}{node}")
    try:
        ip(f"-n {name}0 link add fast0 type veth peer name fast0 netns {name}1")
        for node in (0, 1):
            inside = f"-n {name}{node}"
            ip(f"{inside} link add first0 type veth peer name first1")
            ip(f"{inside} address add 192.168.77.{node + 1}/32 dev first0")
            ip(f"{inside} address add 10.77.0.{node + 1}/24 dev fast0")
            for interface in ("lo", "first0", "first1", "fast0"):
                ip(f"{inside} link set {interface} up")
        yield name
    finally:
        for node in (0, 1):
            ip(f"netns delete {name}{node}")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_machines_train_as_two_processes_do(root: Path, tmp_path: Path, network: str) -> None:  # noqa: F811
    for name, script in (("scontrol", SCONTROL), ("srun", SRUN)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(script)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    training, expected = Training(root, tmp_path / "training"), Training(root, tmp_path / "expected")
    fork_two(run_as_one_of_two, expected.arguments)
    mark = uuid.uuid4().hex
    slurm = {"SLURM_JOB_NODELIST": "node[0-1]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "4711", "GPUS": "1"}
    ours = environment(mark) | slurm | {"NETWORK": network, "FOLDER": str(tmp_path)}
    ours["PATH"] = f"{tmp_path / 'bin'}{os.pathsep}{ours['PATH']}"
    arguments = [word for word in training.command[2:] if word != "GPUS=2"]
    job = subprocess.Popen(["bash", "stage1/scripts/train_stage1.sbatch", *arguments], cwd=ROOT, env=ours)
    try:
        code = job.wait(600)
    finally:
        for pid in marked(mark):
            os.kill(pid, signal.SIGKILL)
    assert code == 0, [(tmp_path / f"said{node}").read_text() for node in (0, 1)]
    assert training.metrics() == expected.metrics()
