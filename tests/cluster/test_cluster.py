"""A cluster as docs/cluster.md makes it, on three hosts of one CPU: `ray up cluster.local.yaml`,
searches that lose hosts, the head among them, and `ray down`. In the order of this file."""

import json
import re
import shlex
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from search.journal import Event
from tests.cluster.follow import Loss, Watch, check_run, lose, mid_fold, next_trained
from tests.cluster.lab import DESK, HOSTS, ROOT, Command, Lab
from tests.runs import events_of, learnable_folder

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "RUNGFOLD_CPUS": "1",  # for cluster.local.yaml: each host sees all cores of this machine
    "RUNGFOLD_OBJECT_STORE": "200000000",
    "AUTOSCALER_HEARTBEAT_TIMEOUT_S": "10",  # until a lost worker is started again; Ray's own: 30
}
OWN = {  # the three lines of cluster.local.yaml that a person changes
    "head_ip": HOSTS["head"],
    "worker_ips": f"[{HOSTS['w1']}, {HOSTS['w2']}]",
    "auth": "{ssh_user: root, ssh_private_key: ~/.ssh/lab}",
}
SLOW = ROOT / "tests/cluster/slow.py"  # on the head: ~/slow.py
SEARCH = (
    "gene_expr --address auto --data ~/data --groups none --image-size 32 --backbone test_resnet "
    "--weights random --seed 1"
)

Measured = Callable[[str], None]


@dataclass(frozen=True)
class Cluster:
    """The lab's hosts, and what a person at the desk does with them."""

    lab: Lab

    def ray(self, command: str, rest: str = "") -> Command:
        """`ray COMMAND cluster.local.yaml REST`, as if typed in the checkout."""
        return self.lab.start(DESK, f"cd {ROOT} && ray {command} ~/cluster.local.yaml {rest}")

    def up(self) -> None:
        up = self.ray("up -y --no-config-cache")
        assert up.wait(100) == 0, up.output()

    def exec(self, command: str) -> Command:
        return self.ray("exec --no-config-cache", shlex.quote(command))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, measured: Measured) -> Iterator[Cluster]:
    text, changed = (ROOT / "cluster.local.yaml").read_text(), 0
    for key, value in OWN.items():
        text, lines = re.subn(rf"(?m)^( *{key}:).*# CHANGE.*$", rf"\1 {value}", text)
        changed += lines
    assert changed == len(OWN)
    begun = time.monotonic()
    with Lab(tmp_path_factory.mktemp("lab") / "hosts", ENVIRONMENT) as lab:
        (lab.home(DESK) / "cluster.local.yaml").write_text(text)
        lab.run(DESK, "ray get-auth-token --generate && chmod 600 ~/.ray/auth_token")
        lab.run(DESK, "echo export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 >> ~/.bashrc")
        learnable_folder(lab.home("head") / "data", rows=60)
        shutil.copy(SLOW, lab.home("head"))
        made, cluster = time.monotonic(), Cluster(lab)
        cluster.up()
        measured(f"ray up: {time.monotonic() - made:.0f} s until the head is up")
        yield cluster
    measured(f"from the lab's start to its end: {time.monotonic() - begun:.0f} s")


def test_the_dashboard_cannot_be_reached_from_another_host(cluster: Cluster) -> None:
    lines = cluster.lab.run("head", "ss -Hltn").splitlines()[1:]
    listening: dict[str, set[str]] = defaultdict(set)
    for line in lines:
        address, _, port = line.split()[3].rpartition(":")
        listening[port].add(address)
    assert listening["8265"] == {"127.0.0.1"}
    assert listening["10001"] == {"127.0.0.1", HOSTS["head"]}  # for drivers elsewhere
    # Ray 2.60 binds its other servers to all addresses; what keeps others out there is the token.
    assert listening["6379"]


def test_without_the_token_nobody_gets_in(cluster: Cluster) -> None:
    code = "import ray; ray.init(address='auto', log_to_driver=False); print('got' + ' in')"
    attempts = {
        mode: (
            cluster.lab.start("head", f"{mode} timeout 80 python -c {shlex.quote(code)}"),
            cluster.lab.start(DESK, f"{mode} ray status --address {HOSTS['head']}:6379"),
        )
        for mode in ("RAY_AUTH_MODE=disabled", "RAY_AUTH_MODE=token", f"RAY_AUTH_TOKEN={'0' * 32}")
    }
    for mode, (driver, status) in attempts.items():
        codes, told = (driver.wait(100), status.wait(100)), driver.output() + status.output()
        if mode == "RAY_AUTH_MODE=token":
            assert codes == (0, 0) and "got in" in told, told
        else:
            assert all(codes) and "got in" not in told and "InvalidAuthToken" in status.output()


def test_three_hosts_do_more_trials_than_two_could(cluster: Cluster, measured: Measured) -> None:
    begun = time.monotonic()
    submitted = cluster.ray("submit --no-config-cache", f"{SLOW} rate ~/data ~/runs/rate 1 3")
    assert submitted.wait(240) == 0, submitted.output()
    # A terminal: the live view is wiped away before each line.
    one, three = map(json.loads, re.findall(r"\{.+\}", submitted.output()))
    assert (one["hosts"], three["hosts"]) == (1, 3)
    ratio = three["per_hour"] / one["per_hour"]
    measured(
        f"trials an hour: {one['per_hour']:.0f} on one host, {three['per_hour']:.0f} on three, "
        f"{ratio:.2f} times as many ({time.monotonic() - begun:.0f} s)"
    )
    assert ratio > 2  # asked for are 2.6, on a machine without other work


@pytest.fixture(scope="module")
def shaken(cluster: Cluster, measured: Measured) -> tuple[Path, dict[str, Loss]]:
    """A search whose folder lies on the head's own disk. w1 is killed and started again, w2 is cut
    off until it has been given up."""
    lab, run = cluster.lab, cluster.lab.home("head") / "runs/shaken"
    search = f"{SEARCH} --out ~/runs/shaken --trials 32 --epochs 30 --folds 2"
    driver = cluster.exec(f"python ~/slow.py 0.2 {search}")
    watch = Watch(run, lambda: driver.output() if driver.code() is not None else None)

    losses = {"w1": lose(watch, "w1", lab.kill)}
    measured(f"host killed: {losses['w1']}")
    lab.boot("w1")

    def back(events: list[Event]) -> Event | None:
        later = (e for e in events if e.kind == "epochs" and e.seq > losses["w1"].lost.seq)
        return next((e for e in later if e.data["host"] == HOSTS["w1"]), None)

    trains = watch.until("w1 trains again", 90, back)
    measured(f"  and, booted at once, trains again after "
             f"{trains.time - losses['w1'].begun:.1f} s")  # fmt: skip
    losses["w2"] = lose(watch, "w2", lab.cut)
    measured(f"host cut off in silence: {losses['w2']}")
    lab.heal("w2")  # what it writes now comes too late
    assert driver.wait(200) == 0, driver.output()
    assert not re.search(r"raylet|Traceback|ERROR", driver.output()), driver.output()
    return run, losses


def test_a_search_outlives_a_killed_and_a_cut_host(shaken: tuple[Path, dict[str, Loss]]) -> None:
    run, losses = shaken
    check_run(run)
    events = events_of(run)
    hosts = {e.data["host"] for e in events if e.kind == "epochs"}
    assert hosts == {HOSTS[name] for name in ("head", "w1", "w2")}
    lost = [e for e in events if e.kind == "lost"]
    assert [e.seq for e in lost] == [loss.lost.seq for loss in losses.values()]
    for name, loss in losses.items():
        lease = loss.lost.trial, loss.lost.attempt
        told = [e for e in events if e.kind == "epochs" and (e.trial, e.attempt) == lease]
        assert {e.data["host"] for e in told} <= {HOSTS[name]}
        assert loss.again.data["host"] != HOSTS[name]


def test_a_lost_trial_goes_on_ahead_of_others(shaken: tuple[Path, dict[str, Loss]]) -> None:
    run, losses = shaken
    for loss in losses.values():
        if loss.free > loss.lost.time:  # else somebody was idle when it was lost
            assert next_trained(events_of(run), loss.lost) == loss.lost.trial


@pytest.fixture(scope="module")
def resumed(cluster: Cluster, measured: Measured) -> tuple[Path, int]:
    """A search on storage that all hosts share, submitted as a job. The head is lost in the middle;
    `ray up` and --resume go on. And how many events there were before."""
    lab, run = cluster.lab, cluster.lab.shared / "runs/resumed"
    tunnel = cluster.ray("dashboard --no-config-cache")
    opens = "until (exec 3<> /dev/tcp/127.0.0.1/8265) 2> /dev/null; do sleep 0.2; done"
    lab.run(DESK, opens, timeout=60)
    search = f"{SEARCH} --out ~/shared/runs/resumed --trials 16 --epochs 10 --folds 2"
    job = "ray job submit --address http://localhost:8265 --submission-id first --no-wait"
    lab.run(DESK, f"{job} -- python ~/slow.py 0.5 {search}", timeout=60)

    def shown(events: list[Event]) -> bool | None:
        return (run / "trials.parquet").is_file() or None

    watch = Watch(run, lambda: None)
    watch.until("the first trial is whole", 120, shown)
    board = cluster.exec("python -m search.leaderboard ~/shared/runs/resumed")
    assert board.wait(60) == 0 and "test_resnet" in board.output(), board.output()

    everywhere = list(HOSTS)
    watch.until("another fold is under way", 60, lambda events: mid_fold(events, everywhere))
    begun = time.monotonic()
    lab.kill("head")
    assert tunnel.wait(30) != 0
    before = len(events_of(run))
    lab.boot("head")
    cluster.up()
    driver = cluster.exec("python -m search.run --resume ~/shared/runs/resumed")
    watch = Watch(run, lambda: driver.output() if driver.code() is not None else None)

    def goes_on(events: list[Event]) -> Event | None:
        return next((e for e in events[before:] if e.kind == "epochs"), None)

    watch.until("the search goes on", 120, goes_on)
    measured(f"head killed, booted at once, ray up, --resume: the first epoch is told after "
             f"{time.monotonic() - begun:.0f} s")  # fmt: skip
    assert driver.wait(200) == 0, driver.output()
    return run, before


def test_a_search_goes_on_after_its_head_was_lost(resumed: tuple[Path, int]) -> None:
    run, before = resumed
    trials, events = check_run(run), events_of(run)
    assert len(trials) == 16
    assert [e.seq for e in events if e.kind == "session"] == [0, before]
    done = [e for e in events[:before] if e.kind == "fold"]
    assert done and len(events) > before + 1


def test_ray_down_leaves_no_ray_process(cluster: Cluster) -> None:
    down = cluster.ray("down -y")
    assert down.wait(100) == 0, down.output()
    for name in ("w1", "w2"):  # Ray stops the head's alone: docs/cluster.md
        ssh = f"ssh -i ~/.ssh/lab -o StrictHostKeyChecking=no root@{HOSTS[name]}"
        cluster.lab.run(DESK, f"{ssh} \"bash -ic 'ray stop --force'\"", timeout=60)
    for name in ("head", "w1", "w2"):
        left = cluster.lab.run(name, "ps -eo args | grep -c '[g]cs_server\\|[r]aylet' || true")
        assert left.splitlines()[1:] == ["0"], name
