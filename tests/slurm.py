"""A real Slurm on this machine, for as long as a test needs it: python -m tests.slurm COMMAND... runs a command under one.

It has one node, which is this machine, no accounting, and keys, sockets, ports and logs of its own in a temporary folder, so
that one that the machine may have is left alone. ``apt-get install slurmctld slurmd slurm-client munge`` brings what it takes.
"""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
SBIN = "/usr/sbin:/sbin"

CONF = """
ClusterName=explr
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
KillWait=1
SchedulerParameters=batch_sched_delay=0,sched_interval=1
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """Return the programs that it takes and this machine lacks."""
    return [program for program in NEEDED if not _which(program)]


@contextlib.contextmanager
def running(seconds: float = 60.0) -> Iterator[dict[str, str]]:
    """Start Slurm; yield the environment in which its commands find it; stop it.

    Raises:
        RuntimeError: if it does not start within that time; the message has the ends of its logs.
    """
    place = Path(tempfile.mkdtemp(prefix="explr-slurm-"))
    host = socket.gethostname().partition(".")[0]
    for folder in ("state", "spool"):
        (place / folder).mkdir()
    key = place / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    conf = CONF.format(host=host, ports=_free_ports(2), user=getpass.getuser(), place=place, cpus=os.cpu_count())
    (place / "slurm.conf").write_text(conf)
    munge = [
        f"--{name}={place}/munge.{end}" for name, end in {"socket": "socket", "pid-file": "pid", "log-file": "log"}.items()
    ]
    commands = [
        ["munged", "--foreground", "--force", f"--key-file={key}", f"--seed-file={place}/munge.seed", *munge],
        ["slurmctld", "-D", "-c"],
        ["slurmd", "-D", "-c"],
    ]
    env = {**os.environ, "SLURM_CONF": str(place / "slurm.conf")}
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        for command in commands:
            log = stack.enter_context((place / f"{command[0]}.out").open("wb"))
            program = [str(_which(command[0])), *command[1:]]
            process = subprocess.Popen(program, env=env, stdout=log, stderr=log, start_new_session=True)
            stack.callback(_stop, process)
            _wait_until(lambda: (place / "munge.socket").exists(), seconds, place)
        _wait_until(lambda: _answer(env, "sinfo", "--noheader", "--format=%t") == "idle", seconds, place)
        yield env
        _answer(env, "scancel", "--user", getpass.getuser())
        with contextlib.suppress(RuntimeError):
            _wait_until(lambda: _answer(env, "squeue", "--noheader") == "", 20.0, place)


def _which(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{SBIN}")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _answer(env: dict[str, str], *command: str) -> str | None:
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    return None if done.returncode else done.stdout.strip()


def _wait_until(true, seconds: float, place: Path) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            logs = "".join(f"\n{log.name}: {log.read_text()[-500:]}" for log in sorted(place.glob("*.[lo][ou][gt]")))
            raise RuntimeError(f"Slurm has not started in {seconds:.0f} s:{logs}")
        time.sleep(0.1)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    if missing():
        sys.exit(f"missing here: {', '.join(missing())}")
    with running() as env:
        sys.exit(subprocess.run(sys.argv[1:], env=env).returncode)
