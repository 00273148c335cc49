"""The lab itself: hosts that are apart, can be killed, cut and healed, and leave nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.lab import HOSTS, ROOT, Lab

pytestmark = pytest.mark.cluster


def machine() -> tuple[str, ...]:
    """What the lab must leave as it was: links, mounts, and the processes' network namespaces."""
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    names = sorted(line.split()[1] for line in links.splitlines())
    networks = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            networks.add(os.readlink(process / "ns/net"))
        except OSError:  # ended meanwhile, or a kernel's thread
            continue
    return *names, Path("/proc/self/mountinfo").read_text(), *sorted(networks)


def reached(lab: Lab, name: str) -> bool:
    """Whether the desk reaches a host's sshd within seconds."""
    knock = f"timeout 2 bash -c 'exec 3<> /dev/tcp/{HOSTS[name]}/22'"
    return lab.start("desk", f"{knock} || {{ sleep 1; {knock}; }}").wait(20) == 0


def test_hosts_are_apart_and_nothing_is_left_of_them(tmp_path: Path) -> None:
    before = machine()
    with Lab(tmp_path, {"GREETING": "hello"}) as lab:
        assert machine() != before
        ssh = f"ssh -i ~/.ssh/lab -o StrictHostKeyChecking=no root@{HOSTS['w1']}"
        said = lab.run("desk", f"{ssh} 'source ~/.bashrc; hostname; echo $GREETING; which python'")
        assert said.splitlines()[-3:] == ["w1", "hello", f"{sys.prefix}/bin/python"]
        for name in HOSTS:
            alone = f"hostname; ls /tmp/only-* || touch /tmp/only-{name}"
            assert lab.run(name, f"({alone}) 2> /dev/null").splitlines()[1:] == [name]
            assert len(lab.run(name, "ip -o link").splitlines()) == (6 if name == "desk" else 3)
        lab.run("w1", "echo mine > ~/mine; echo ours > ~/shared/ours")
        assert (lab.home("w1") / "mine").read_text() == "mine\n"
        assert lab.run("w2", "[ ! -e ~/mine ] && cat ~/shared/ours").endswith("\nours\n")
        refused = lab.start("w1", "touch /usr/mine").wait(10)
        assert refused != 0 and not Path("/usr/mine").exists()
    assert machine() == before


def test_a_host_is_killed_booted_cut_and_healed(tmp_path: Path) -> None:
    with Lab(tmp_path, {}) as lab:
        stays = lab.start("w1", "touch /tmp/there ~/there; sleep 1000")
        while not (lab.home("w1") / "there").exists():
            time.sleep(0.01)
        lab.kill("w1")
        assert stays.wait(5) != 0 and not reached(lab, "w1")
        lab.boot("w1")
        assert reached(lab, "w1")
        lab.run("w1", "[ ! -e /tmp/there ] && [ -e ~/there ]")
        lab.cut("w2")
        assert not reached(lab, "w2") and reached(lab, "w1")
        lab.heal("w2")
        while not reached(lab, "w2"):
            time.sleep(0.1)


def test_a_lab_goes_with_the_process_that_made_it(tmp_path: Path) -> None:
    before = machine()
    code = (
        "import time; from pathlib import Path; from tests.cluster.lab import Lab\n"
        f"with Lab(Path({str(tmp_path)!r}), {{}}): print('up', flush=True); time.sleep(1000)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout as told:
        assert told.readline() == "up\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while machine() != before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
