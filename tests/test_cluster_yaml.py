"""cluster.yaml, cluster.local.yaml and the variant for GCP in docs/cluster.md: Ray takes them, and
they do what they promise. Their commands run in a shell here, with stand-ins for what they call."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.exceptions import ParamValidationError
from moto import mock_aws
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
AWS, LOCAL, GCP = "cluster.yaml", "cluster.local.yaml", "docs/cluster.md"
ALL = (AWS, LOCAL, GCP)
ROLES = ("head", "worker")
WORLD = "0.0.0.0/0"


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def load(name: str) -> dict[str, Any]:
    """A cluster's settings; those of the docs are what differs from cluster.yaml."""
    if name != GCP:
        return dict(yaml.safe_load(text_of(name)))
    (block,) = re.findall(r"^```yaml\n(.*?)^```", text_of(GCP), re.M | re.S)
    return load(AWS) | yaml.safe_load(block)


def commands(config: dict[str, Any]) -> list[str]:
    return [c for key in config if key.endswith("_commands") for c in config[key]]


def prepared(name: str) -> dict[str, Any]:
    """The settings as `ray up` completes them."""
    from ray.autoscaler._private.util import prepare_config

    return dict(prepare_config(load(name)))


# --- what Ray says ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_rays_own_check_takes_the_file(name: str) -> None:
    from ray.autoscaler._private.util import validate_config

    validate_config(prepared(name))


def test_all_workers_of_the_local_file_start() -> None:
    config = prepared(LOCAL)
    (kind,) = config["available_node_types"].values()
    count = len(config["provider"]["worker_ips"])
    assert (kind["min_workers"], kind["max_workers"], config["max_workers"]) == (count,) * 3


@pytest.mark.parametrize("name", [AWS, GCP])
def test_workers_come_when_asked_for_and_go_when_idle(name: str) -> None:
    config = prepared(name)
    kinds = config["available_node_types"]
    head = kinds.pop(config["head_node_type"])
    assert head["max_workers"] == 0 and head["resources"] == {"CPU": 0}
    assert kinds and all(kind["min_workers"] == 0 < kind["max_workers"] for kind in kinds.values())
    assert 0 < config["idle_timeout_minutes"] <= 30


def test_workers_on_gcp_are_spot_and_the_head_is_not() -> None:
    config = load(GCP)
    scheduling = {
        name: kind["node_config"].get("scheduling", {})
        for name, kind in config["available_node_types"].items()
    }
    assert "provisioningModel" not in scheduling.pop(config["head_node_type"])
    assert {s["provisioningModel"] for s in scheduling.values()} == {"SPOT"}
    # Google's own rule for spot machines, and none is left behind when one is taken away.
    assert all(s["automaticRestart"] is False for s in scheduling.values())
    assert {s["instanceTerminationAction"] for s in scheduling.values()} == {"DELETE"}


# --- versions and package -----------------------------------------------------------------------


def test_one_ray_one_python_and_one_day_for_packages_on_all_nodes() -> None:
    everything = "\n".join(map(text_of, ALL))
    pins = {
        "ray": r"ray(?:\[\w+\])?==([\d.]+)|v\(\"ray\"\) == \"([\d.]+)\"",
        "python": r"--python ([\d.]+)",
        "uv": r"astral\.sh/uv/([\d.]+)/",
        "packages": r"--exclude-newer ([\d-]+)",
    }
    found = {
        what: {"".join(match) if isinstance(match, tuple) else match
               for match in re.findall(pattern, everything)}
        for what, pattern in pins.items()
    }  # fmt: skip
    assert {what: len(values) for what, values in found.items()} == dict.fromkeys(pins, 1), found
    (python,) = found["python"]
    assert python.startswith("3.11.") and PROJECT["project"]["requires-python"] == ">=3.11"
    (ray,) = found["ray"]
    wanted = map(Requirement, PROJECT["project"]["optional-dependencies"]["search"])
    assert next(r for r in wanted if r.name == "ray").specifier.contains(ray)
    assert ray == version("ray"), "the tests know another Ray than the clusters get: move the pin"


@pytest.mark.parametrize("name", ALL)
def test_every_installation_is_pinned(name: str) -> None:
    installs = [c for c in commands(load(name)) if "uv pip install" in c]
    assert installs
    for command in installs:
        assert "--exclude-newer" in command and "==" in command
        assert "-r ~/rungfold/pyproject.toml" in command
        named = set(re.findall(r"--extra (\w+)", command))
        assert "search" in named <= set(PROJECT["project"]["optional-dependencies"])


@pytest.mark.parametrize("name", ALL)
def test_the_whole_package_is_mounted_and_nothing_else_of_the_checkout(name: str) -> None:
    mounts = load(name)["file_mounts"]
    here = {there: source for there, source in mounts.items() if not source.startswith("~")}
    packages = {package.split(".")[0] for package in PROJECT["tool"]["setuptools"]["packages"]}
    assert set(here.values()) == packages | {"pyproject.toml"}
    assert here == {f"~/rungfold/{source}": source for source in here.values()}
    assert all((ROOT / source).exists() for source in here.values())


# --- commands, run ------------------------------------------------------------------------------


class Shell:
    """A home and a PATH of stand-ins; what they were called with, in order."""

    def __init__(self, folder: Path) -> None:
        self.home, self._bin, self._log = folder / "home", folder / "bin", folder / "calls"
        (self.home / "rungfold").mkdir(parents=True)
        (self.home / "rungfold" / "pyproject.toml").symlink_to(ROOT / "pyproject.toml")
        self._bin.mkdir()

    def stand_in(self, name: str, then: str = "") -> Path:
        """A command that notes its arguments and environment, and then does `then`."""
        note = (
            f"import json, os, sys; print(json.dumps([{name!r}, sys.argv[1:], dict(os.environ)]), "
            f"file=open({str(self._log)!r}, 'a'))"
        )
        path = self._bin / name
        path.write_text(f'#!/bin/bash\n{sys.executable} -c "{note}" "$@"\n{then}\n')
        path.chmod(0o755)
        return path

    def run(self, command: str, **variables: str) -> None:
        """As `ray up` runs it: after ~/.bashrc, with the variables that it exports before."""
        exports = "".join(f"export {name}={value!r}; " for name, value in variables.items())
        # The system's folders come last: only a stand-in is a `python` or `ray` that is there.
        environment = {"HOME": str(self.home), "PATH": f"{self._bin}:/usr/bin:/bin"}
        subprocess.run(
            ["bash", "-c", f"test -e ~/.bashrc && source ~/.bashrc; {exports}{command}"],
            cwd=self.home, env=environment, check=True, timeout=60,
        )  # fmt: skip

    def calls(self, name: str) -> list[tuple[list[str], dict[str, str]]]:
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [(args, env) for who, args, env in map(json.loads, lines) if who == name]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def started(shell: Shell, name: str, role: str, **more: str) -> tuple[set[str], dict[str, str]]:
    """Arguments and environment that `ray start` of a head or worker gets when `ray up` or the head
    runs it over ssh."""
    shell.stand_in("ray")
    exported = {
        "RAY_HEAD_IP": "10.1.1.1",
        "RAY_USAGE_STATS_ENABLED": "1",  # unless switched off on the user's own machine
        "RAY_enable_autoscaler_v2": "1",
        "SSH_CONNECTION": "10.1.1.9 50000 10.1.1.5 22",  # from sshd
    }
    for command in load(name)[f"{role}_start_ray_commands"]:
        shell.run(command, **(exported | more))
    (stop, _), (start, environment) = shell.calls("ray")
    assert stop[0] == "stop" and start[0] == "start"
    return set(start[1:]), environment


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", ALL)
def test_ray_starts_with_the_token_and_without_statistics(
    shell: Shell, name: str, role: str
) -> None:
    _, environment = started(shell, name, role)
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    assert load(name)["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize("name", ALL)
def test_the_head_shows_its_dashboard_to_itself_alone_and_gives_up_silent_nodes_soon(
    shell: Shell, name: str
) -> None:
    arguments, environment = started(shell, name, "head")
    assert {"--head", "--port=6379", "--dashboard-host=127.0.0.1",
            "--autoscaling-config=~/ray_bootstrap_config.yaml"} <= arguments  # fmt: skip
    period, timeout, times = (
        int(environment[f"RAY_health_check_{what}"])
        for what in ("period_ms", "timeout_ms", "failure_threshold")
    )
    assert times * (period + timeout) < 30_000


@pytest.mark.parametrize("name", ALL)
def test_workers_join_the_head(shell: Shell, name: str) -> None:
    arguments, _ = started(shell, name, "worker")
    assert "--address=10.1.1.1:6379" in arguments


@pytest.mark.parametrize("role", ROLES)
def test_own_machines_listen_at_the_address_that_ssh_came_to(shell: Shell, role: str) -> None:
    arguments, _ = started(shell, LOCAL, role)
    assert "--node-ip-address=10.1.1.5" in arguments
    assert not [a for a in arguments if a.startswith("--num-cpus")]  # Ray counts
    assert "--object-store-memory=2000000000" in arguments


@pytest.mark.parametrize("role", ROLES)
def test_own_machines_may_offer_less(shell: Shell, role: str) -> None:
    less = {"RUNGFOLD_CPUS": "1", "RUNGFOLD_OBJECT_STORE": "200000000"}
    arguments, _ = started(shell, LOCAL, role, **less)
    assert {"--num-cpus=1", "--object-store-memory=200000000"} <= arguments


def test_the_old_launcher_serves_own_machines(shell: Shell) -> None:
    _, environment = started(shell, LOCAL, "head")
    assert environment["RAY_enable_autoscaler_v2"] == "0"


@pytest.mark.parametrize("name", ALL)
def test_every_shell_on_a_node_knows_the_package_and_the_token(shell: Shell, name: str) -> None:
    (command,) = (c for c in load(name)["setup_commands"] if ".bashrc" in c)
    shell.run(command)
    shell.run(command)  # `ray up` again
    assert len((shell.home / ".bashrc").read_text().splitlines()) == 1
    shell.stand_in("look")
    shell.run("look")
    ((_, environment),) = shell.calls("look")
    assert environment["PATH"].startswith(f"{shell.home}/env/bin:")
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"


def test_the_package_comes_before_what_a_machine_has_on_its_path(shell: Shell) -> None:
    for before, expected in (("", "{home}/rungfold"), ("/own", "{home}/rungfold:/own")):
        (shell.home / ".bashrc").write_text(f"export PYTHONPATH={before}\n")
        for command in load(LOCAL)["setup_commands"][:1]:
            shell.run(command)
        shell.stand_in("look")
        shell.run("look")
        assert shell.calls("look")[-1][1]["PYTHONPATH"] == expected.format(home=shell.home)


UV = "mkdir -p ~/.local/bin && ln -sf {uv} ~/.local/bin/uv"


def set_up(shell: Shell, name: str) -> None:
    """All of the setup commands, with a downloaded uv that makes no more than a file."""
    made = f"{shell.home}/env/bin"
    uv = shell.stand_in("uv", then=f"mkdir -p {made}; touch {made}/python; chmod +x {made}/python")
    shell.stand_in("curl", then=f"echo '{UV.format(uv=uv)}'")
    config = load(name)
    for command in config["setup_commands"] + config.get("head_setup_commands", []):
        shell.run(command)


@pytest.mark.parametrize("name", ALL)
def test_a_bare_machine_gets_uv_python_and_packages(shell: Shell, name: str) -> None:
    shell.stand_in("python", then="exit 127")
    set_up(shell, name)
    set_up(shell, name)  # `ray up` again
    assert len(shell.calls("curl")) == 1
    (environment, _), *installs = shell.calls("uv")
    assert environment[:1] == ["venv"] and environment[-1] == f"{shell.home}/env"
    assert installs and all(args[:2] == ["pip", "install"] for args, _ in installs)
    assert all(f"ray[default]=={version('ray')}" in args for args, _ in installs)


def test_a_machine_that_is_ready_needs_no_network(shell: Shell) -> None:
    shell.stand_in("python", then=f'exec {sys.executable} "$@"')
    set_up(shell, LOCAL)
    assert shell.calls("curl") == shell.calls("uv") == []


def test_a_machine_with_another_ray_is_not_ready(shell: Shell) -> None:
    found = shell.home.parent / "site" / "ray-1.0.dist-info"
    found.mkdir(parents=True)
    (found / "METADATA").write_text("Metadata-Version: 2.1\nName: ray\nVersion: 1.0\n")
    (shell.home / ".bashrc").write_text(f"export PYTHONPATH={found.parent}\n")
    shell.stand_in("python", then=f'exec {sys.executable} "$@"')
    set_up(shell, LOCAL)
    assert shell.calls("uv")


# --- own machines: three lines ------------------------------------------------------------------


def test_three_lines_of_the_local_file_speak_of_machines() -> None:
    changed = [line for line in text_of(LOCAL).splitlines() if "# CHANGE" in line]
    assert [line.split(":")[0].strip() for line in changed] == ["head_ip", "worker_ips", "auth"]
    config = load(LOCAL)
    assert set(config["provider"]) == {"type", "head_ip", "worker_ips"}
    user = config.pop("auth")["ssh_user"]
    config["provider"] = {}
    rest = json.dumps(config)
    addresses = set(re.findall(r"\b(?:\d{1,3}\.){3}\d{1,3}\b", rest))
    assert addresses == {"127.0.0.1"}
    assert not re.search(rf"/home/|/root|/Users/|\b{user}\b", rest)


# --- AWS, as Ray asks for it --------------------------------------------------------------------


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """EC2 as far as moto plays it, and an empty home for the key that Ray makes."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with mock_aws():
        from ray.autoscaler._private.aws import config, utils

        for cache in (utils.resource_cache, utils.client_cache, config._get_subnets_or_die):
            cache.cache_clear()  # what they hold belongs to another test's EC2
        yield boto3.resource("ec2", region_name=load(AWS)["provider"]["region"])


def groups_of(ec2: Any) -> list[Any]:
    name = load(AWS)["provider"]["security_group"]["GroupName"]
    return list(ec2.security_groups.filter(Filters=[{"Name": "group-name", "Values": [name]}]))


def closed_group(ec2: Any) -> Any:
    """The security group that docs/cluster.md has the user make."""
    (network,) = ec2.vpcs.filter(Filters=[{"Name": "is-default", "Values": ["true"]}])
    name = load(AWS)["provider"]["security_group"]["GroupName"]
    group = ec2.create_security_group(GroupName=name, Description="x", VpcId=network.id)
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22}
    group.authorize_ingress(
        IpPermissions=[
            {**ssh, "IpRanges": [{"CidrIp": "198.51.100.7/32"}]},
            {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group.id}]},
        ]
    )
    group.reload()
    return group


def bootstrapped(config: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` makes of prepared settings before it starts a machine."""
    from ray.autoscaler._private.aws.config import bootstrap_aws

    return dict(bootstrap_aws(config))


def test_without_the_users_security_group_nothing_is_opened(aws: Any) -> None:
    for _ in range(2):  # the second time there is a group, without rules
        with pytest.raises(ParamValidationError, match=r"docs/cluster\.md"):
            bootstrapped(prepared(AWS))
        (group,) = groups_of(aws)
        assert group.ip_permissions == []


def test_the_users_security_group_is_taken_as_it_is(aws: Any) -> None:
    group = closed_group(aws)
    before = group.ip_permissions
    config = bootstrapped(prepared(AWS))
    assert {tuple(kind["node_config"]["SecurityGroupIds"])
            for kind in config["available_node_types"].values()} == {(group.id,)}  # fmt: skip
    group.reload()
    assert group.ip_permissions == before and WORLD not in json.dumps(before)


def test_machines_are_as_promised(aws: Any) -> None:
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    closed_group(aws)
    boto3.client("iam").create_instance_profile(InstanceProfileName="rungfold")  # the user's own
    config = AWSNodeProvider.fillout_available_node_types_resources(prepared(AWS))
    config = bootstrapped(config)
    gpu = config["available_node_types"]["gpu"]
    assert gpu["resources"]["GPU"] == 1 and gpu["resources"]["CPU"] >= 1
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    made = {}
    for name, kind in config["available_node_types"].items():
        ((_, machine),) = provider.create_node(kind["node_config"], {}, 1).items()
        machine.reload()
        made[name] = machine
        (disk,) = machine.volumes.all()
        (mapping,) = machine.block_device_mappings
        assert disk.encrypted and mapping["Ebs"]["DeleteOnTermination"]
    assert made["head"].instance_lifecycle is None and made["head"].iam_instance_profile
    assert made["gpu"].instance_lifecycle == "spot" and not made["gpu"].iam_instance_profile
    assert set(provider.non_terminated_nodes({})) == {machine.id for machine in made.values()}
    provider.terminate_nodes([machine.id for machine in made.values()])
    states = {machine.state["Name"] for machine in aws.instances.all()}
    assert states == {"terminated"}  # stopped ones would go on costing


def test_nothing_tells_the_reader_to_open_a_port_to_the_world() -> None:
    blocks = re.findall(r"^(?:```.*?^```|    \S.*?$)", text_of(GCP), re.M | re.S)
    assert WORLD not in text_of(AWS) + text_of(LOCAL) + "".join(blocks)
