"""A cluster of three hosts on one Linux machine, as far as `ray up` can tell.

A host is a set of namespaces (network, mounts, processes, host name, IPC) with an sshd, /root, /tmp
and /dev/shm of its own; the machine's file system is read-only in it. The desk is one more, without
sshd, where a person sits and types `ray up`; its network namespace holds the bridge between all.
So the machine's own network, mounts and home folders stay as they are, and the kernel takes
everything back when the hosts' first processes die, which they do with the process that made them.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parents[2]  # the checkout
NET = "10.77.0"
DESK = "desk"
HOSTS = {DESK: f"{NET}.1", "head": f"{NET}.11", "w1": f"{NET}.12", "w2": f"{NET}.13"}
CORES, FREE_MIB = 2, 4096  # the three hosts take up to 3400
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TOOLS = {  # program -> Debian's package
    "hostname": "hostname", "ip": "iproute2", "mount": "mount", "nsenter": "util-linux",
    "rsync": "rsync", "setpriv": "util-linux", "ssh": "openssh-client",
    "ssh-keygen": "openssh-client", "sshd": "openssh-server", "unshare": "util-linux",
}  # fmt: skip
WITH_ME = ("setpriv", "--pdeathsig", "KILL")  # dies with the process that started it
HIDDEN = (Path("/root"), Path("/tmp"))  # a host has its own of these
SSHD = """\
ListenAddress {address}
HostKey /run/lab/ssh_host_key
AuthorizedKeysFile /run/lab/authorized_keys
PidFile /run/lab/sshd.pid
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
UseDNS no
PrintMotd no
MaxStartups 50:30:100
"""


def missing() -> list[str]:
    """What the lab needs and this machine does not have, in words."""
    faults = [] if os.geteuid() == 0 else ["root"]
    absent = [tool for tool in TOOLS if not shutil.which(tool, path=PATH)]
    packages = " ".join(sorted({TOOLS[tool] for tool in absent}))
    if absent:
        faults.append(f"{', '.join(absent)} (apt-get install {packages})")
    if find_spec("aiohttp_cors") is None:  # one of those that ray[default] adds to ray
        faults.append('the dashboard (pip install "ray[default]")')
    cores = len(os.sched_getaffinity(0))
    if cores < CORES:
        faults.append(f"{CORES} CPU cores instead of {cores}")
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) // 1024 for line in lines if line.startswith("MemAvailable"))
    if free < FREE_MIB:
        faults.append(f"{FREE_MIB} MiB of free memory instead of {free}")
    if not faults:
        trial = "mount --make-rprivate / && ip link add lab type bridge"
        made = subprocess.run(
            ["unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "sh", "-c", trial],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if made.returncode:
            faults.append(f"the right to make namespaces and bridges ({made.stderr.strip()})")
    return faults


class Lab:
    """The hosts, from `with Lab(folder)` to its end. `folder` must be empty and gets all files.

    Every command runs as root in the host's /root, after ~/.bashrc, which sets `environment`.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder, self.shared = folder, folder / "shared"  # on all hosts: /root/shared
        self._environment = environment
        self._networks: dict[str, subprocess.Popen[str]] = {}
        self._hosts: dict[str, subprocess.Popen[str]] = {}  # the parents of first processes
        self._boots = self._commands = 0

    def __enter__(self) -> Self:
        try:
            self.up()
        except BaseException:  # Ctrl-C as well
            self.down()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.down()

    def home(self, name: str) -> Path:
        """The host's /root, as the machine sees it."""
        return self.folder / name / "root"

    # -- hosts ---------------------------------------------------------------------------------

    def up(self) -> None:
        self.shared.mkdir(parents=True)
        (self.folder / "logs").mkdir()
        key = self.folder / "key"
        _call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
        for name in HOSTS:
            self._furnish(name, key)
            self._networks[name] = self._network()
        # Without IPv6: the hosts have no other address than the one in HOSTS.
        for name in HOSTS:
            for which in ("all", "default"):
                off = f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6"
                self._wire(name, f"if [ -e {off} ]; then echo 1 > {off}; fi; ip link set lo up")
        address = f"{HOSTS[DESK]}/24"
        self._wire(DESK, f"ip link add lab type bridge; ip addr add {address} dev lab")
        self._wire(DESK, "ip link set lab up")
        for name, address in HOSTS.items():
            if name != DESK:
                to = self._networks[name].pid
                self._wire(DESK, f"ip link add {name} type veth peer name eth0 netns {to}")
                self._wire(DESK, f"ip link set {name} master lab up")
                # No default route, on purpose: nothing leaves the bridge.
                self._wire(name, f"ip addr add {address}/24 dev eth0; ip link set eth0 up")
        for name in HOSTS:
            self.boot(name)

    def down(self) -> None:
        """All processes killed; with them everything else goes."""
        for name in self._hosts:
            self.kill(name)
        for network in self._networks.values():
            network.kill()
            network.wait()
        self._networks.clear()

    def boot(self, name: str) -> None:
        """Start a host that is down. Its /root is as it was, its /tmp empty."""
        self._boots += 1
        folder, tmp = self.folder / name, self.folder / name / f"tmp-{self._boots}"
        tmp.mkdir()
        tmp.chmod(0o1777)
        address = "-" if name == DESK else HOSTS[name]
        host = subprocess.Popen(
            [*WITH_ME, "nsenter", f"--net=/proc/{self._networks[name].pid}/ns/net", "unshare",
             "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc",
             "bash", ROOT / "tests/cluster/host_init.sh", name, address, folder, tmp,
             *self._seen(name)],
            env={"PATH": PATH, "HOME": "/root", "USER": "root", "LANG": "C.UTF-8"}, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the tests, which take the lab down
        )  # fmt: skip
        self._hosts[name] = host
        assert host.stdout is not None
        told = []
        while (line := host.stdout.readline()) != "ready\n":
            told.append(line)
            assert line, f"{name} does not start: {''.join(told)}"

    def kill(self, name: str) -> None:
        """All its processes die at once; the kernel still closes their connections."""
        host, first = self._hosts[name], self._first_process(name)
        if first is None:  # not there yet, or no longer
            host.kill()
        else:
            os.kill(first, signal.SIGKILL)  # all others in its namespace die before it is gone
        host.wait()
        assert host.stdout is not None
        host.stdout.close()

    def cut(self, name: str) -> None:
        """From now on nothing reaches the host or leaves it; nobody is told."""
        self._wire(DESK, f"ip link set {name} down")

    def heal(self, name: str) -> None:
        self._wire(DESK, f"ip link set {name} up")

    # -- commands ------------------------------------------------------------------------------

    def start(self, name: str, command: str) -> "Command":
        """A command on a host, in the background; it dies with the host at the latest."""
        first = self._first_process(name)
        assert first is not None, f"{name} is down"
        self._commands += 1
        log = self.folder / "logs" / f"{self._commands:03d}-{name}"
        log.write_text(f"{name}$ {command}\n")
        with log.open("a") as file:  # no pipe: what is left behind on the host would hold it open
            process = subprocess.Popen(
                ["nsenter", f"--target={first}", "--mount", "--pid", "--uts", "--ipc", "--net",
                 "bash", "-c", f"source ~/.bashrc; cd; {command}"],
                env={"PATH": PATH, "HOME": "/root", "USER": "root", "LANG": "C.UTF-8",
                     "TERM": "xterm"},
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        return Command(process, log)

    def run(self, name: str, command: str, timeout: float = 60) -> str:
        """The output of a command on a host that must end with exit code 0 within `timeout` s."""
        started = self.start(name, command)
        assert started.wait(timeout) == 0, started.output()
        return started.output()

    # -- inside --------------------------------------------------------------------------------

    def _furnish(self, name: str, key: Path) -> None:
        """The files that make a host itself."""
        etc, home = self.folder / name / "etc", self.home(name)
        etc.mkdir(parents=True)
        (home / ".ssh").mkdir(parents=True)
        hosts = [f"{address} {other}\n" for other, address in HOSTS.items()]
        (etc / "hosts").write_text("".join(["127.0.0.1 localhost\n", *hosts]))
        # "*": no password, but not locked either.
        (etc / "shadow").write_text("root:*:19000:0:99999:7:::\nsshd:!:19000::::::\n")
        (etc / "resolv.conf").write_text("")
        (etc / "sshd_config").write_text(SSHD.format(address=HOSTS[name]))
        shutil.copy(key.with_suffix(".pub"), etc / "authorized_keys")
        _call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", etc / "ssh_host_key")
        if name == DESK:
            shutil.copy(key, home / ".ssh/lab")
        lines = [f'export {key}="{value}"\n' for key, value in self._environment.items()]
        path = f'export PATH="{sys.prefix}/bin:$PATH"\n'
        (home / ".bashrc").write_text("".join([path, *lines]))

    def _seen(self, name: str) -> list[str]:
        """For host_init.sh: what a host sees of the folders that its own /root and /tmp hide."""
        real = Path(sys.base_prefix).resolve()
        here = {Path(sys.prefix), Path(sys.base_prefix), real, *([ROOT] if name == DESK else ())}
        hidden = [p for p in sorted(here) if any(p.is_relative_to(top) for top in HIDDEN)]
        seen = [(str(path), str(path), "ro") for path in hidden]
        shared = (str(self.shared), "/root/shared", "rw")
        return [word for folder in (*seen, shared) for word in folder]

    def _network(self) -> subprocess.Popen[str]:
        """A process that holds a network namespace, so that it outlives the host's death."""
        holder = subprocess.Popen(
            [*WITH_ME, "unshare", "--net", "sh", "-c", "echo; exec sleep infinity"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert holder.stdout is not None
        with holder.stdout as told:
            told.readline()  # the namespace is there
        return holder

    def _wire(self, name: str, commands: str) -> None:
        """Commands in a host's network, but with the machine's files and processes."""
        network = f"--net=/proc/{self._networks[name].pid}/ns/net"
        _call("nsenter", network, "sh", "-euc", commands)

    def _first_process(self, name: str) -> int | None:
        """None when the host is down."""
        parent = self._hosts[name]
        if parent.poll() is not None:
            return None
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text()
        return int(children) if children else None


class Command:
    """A command on a host, and what it has printed so far."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process, self._log = process, log

    def code(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.poll()

    def wait(self, timeout: float) -> int:
        """The exit code, within `timeout` seconds."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"not over after {timeout:g} s: {self.output()}") from None

    def output(self) -> str:
        """The command, and what it printed."""
        return self._log.read_text(errors="replace")


def _call(*command: object) -> None:
    done = subprocess.run(
        list(map(str, command)), env={"PATH": PATH}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
