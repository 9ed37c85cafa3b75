"""A real Slurm of one node: munged, slurmctld and slurmd, with all their files in one folder."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")
_STARTS_WITHIN_S = 60
_PATIENCE_S = 600

_CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/builtin
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1
ReturnToService=2
KillWait=30
MinJobAge=10
CompleteWait=0
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=all Nodes={host} Default=YES PriorityTier=1 MaxTime=INFINITE State=UP
PartitionName=urgent Nodes={host} PriorityTier=10 MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Why no Slurm can be started here; empty where one can."""
    missing = [program for program in PROGRAMS if _find(program) is None]
    if missing:
        return f"needs Slurm ({', '.join(missing)} missing): apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "needs root, whom slurmd runs as"


class SingleNodeSlurm:
    """Runs while the context is open.

    Args:
        folder: an empty folder for its configuration, state and logs.

    Attributes:
        environment: what a process needs to talk to it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen] = []

    def __enter__(self) -> "SingleNodeSlurm":
        self.folder.chmod(0o755)
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        host = socket.gethostname().partition(".")[0]
        controller_port, node_port = _free_ports(2)
        (self.folder / "slurm.conf").write_text(
            _CONFIG.format(
                host=host,
                folder=self.folder,
                cpus=os.cpu_count(),
                controller_port=controller_port,
                node_port=node_port,
            )
        )
        try:
            files = ("key-file=munge.key", "socket=munge.socket", "pid-file=munge.pid")
            files += ("log-file=munge.log", "seed-file=munge.seed")
            self._start(
                "munged",
                "--foreground",
                "--force",
                *(
                    f"--{option}={self.folder}/{file}"
                    for option, file in (f.split("=") for f in files)
                ),
            )
            self._wait_for((self.folder / "munge.socket").exists)
            self._start("slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))
            self._start("slurmd", "-D", "-f", str(self.folder / "slurm.conf"))
            self._wait_for(
                lambda: self.ask("sinfo", "--noheader", "--partition=all", "--format=%T") == "idle"
            )
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            self.ask("scancel", "--full", "--signal=KILL", "--user=root")
            self.ask("scancel", "--user=root")
            end_s = time.monotonic() + 20  # while slurmd lives, steps can end
            while self.ask("squeue", "--noheader") and time.monotonic() < end_s:
                time.sleep(0.2)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(5)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def ask(self, *command: str) -> str:
        """What a command of Slurm's prints."""
        ended = subprocess.run(
            command, capture_output=True, text=True, check=False, env=self.environment, timeout=30
        )
        return ended.stdout.strip()

    def wait_for(self, holds: Callable[[], object]) -> None:
        """Waits until `holds()`; fails, with the queue, where that takes very long."""
        end_s = time.monotonic() + _PATIENCE_S
        while not holds():
            assert time.monotonic() < end_s, self.ask("squeue", "--array")
            time.sleep(0.2)

    def _start(self, program: str, *arguments: str) -> None:
        found = _find(program)
        assert found is not None
        with open(self.folder / f"{program}.out", "wb") as output:
            self._daemons.append(
                subprocess.Popen(
                    [found, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=self.environment,
                )
            )

    def _wait_for(self, holds) -> None:
        end_s = time.monotonic() + _STARTS_WITHIN_S
        while not holds():
            ended = [d.args for d in self._daemons if d.poll() is not None]
            logs = "\n".join(
                path.read_text(errors="replace")[-1000:] for path in self.folder.glob("*.out")
            )
            assert not ended, f"{ended} ended: {logs}"
            assert time.monotonic() < end_s, logs
            time.sleep(0.1)


def _find(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now."""
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
