"""The plan: budgets become epochs, workers and sizes; impossible wishes are told at once."""

import json
from dataclasses import replace

import pytest

from search.journal import Event
from search.plan import (
    Facts,
    Plan,
    Resources,
    Wish,
    check_gpus,
    check_wish,
    extended,
    make_plan,
    plan_images,
)
from search.policy.packing import Packing
from spaces.errors import UserError
from spaces.tasks.gene_expr import CPU_BACKBONES, GPU_BACKBONES

CPU = Resources(cpus=2, gpus=0, memory_bytes=20 * 10**9)
GPU = Resources(cpus=32, gpus=4, memory_bytes=200 * 10**9)


def plan_of(
    wish: Wish,
    resources: Resources = CPU,
    rows: int = 828,
    native: int = 64,
    packing: Packing | None = None,
) -> Plan:
    offered = wish.backbones or (GPU_BACKBONES if resources.gpu else CPU_BACKBONES)
    facts = Facts(rows=rows, folds=5, backbones=offered)
    images = plan_images(wish, native, offered, resources.gpu)
    return make_plan(wish, facts, images, resources, packing)


def test_a_worker_for_each_core_and_each_gpu() -> None:
    assert plan_of(Wish()).workers == 2
    plan = plan_of(Wish(), GPU, native=224)
    assert (plan.workers, plan.cpus_per_trial, plan.gpus_per_trial) == (4, 8, 1.0)
    assert plan_of(Wish(gpus_per_trial=0.5), GPU).workers == 8


def cluster(*hosts: tuple[int, int], cpus: int = 0, gpus: int = 0) -> Resources:
    """Hosts of so many CPUs and GPUs, that may grow by `cpus` and `gpus`."""
    return Resources(
        cpus=sum(c for c, _ in hosts) + cpus, gpus=sum(g for _, g in hosts) + gpus,
        memory_bytes=10**12, hosts=hosts,
    )  # fmt: skip


def test_a_trial_must_find_room_on_one_host() -> None:
    three = cluster((3, 0), (3, 0), (1, 0))
    assert plan_of(Wish(), three).workers == 7
    plan = plan_of(Wish(cpus_per_trial=2), three)
    assert (plan.workers, plan.cpus_per_trial) == (2, 2)
    assert "workers 2: 3 hosts, 7 CPU cores, 2 for each trial; more as hosts join" in plan.reasons
    with pytest.raises(UserError, match="no host has more than 3 CPUs"):
        plan_of(Wish(cpus_per_trial=4), three)


def test_the_cpus_of_hosts_without_gpus_are_no_help_to_trials_on_gpus() -> None:
    plan = plan_of(Wish(), cluster((16, 0), (4, 1), (8, 2)), native=224)
    assert (plan.workers, plan.cpus_per_trial) == (3, 4)
    with pytest.raises(UserError, match="a host with GPUs has at most 8 CPUs"):
        plan_of(Wish(cpus_per_trial=16), cluster((16, 0), (4, 1), (8, 2)), native=224)


def test_what_a_cluster_may_grow_by_counts() -> None:
    plan = plan_of(Wish(), cluster((4, 0), cpus=32, gpus=4), native=224)
    assert (plan.workers, plan.cpus_per_trial) == (4, 8)
    assert Resources.from_dict(json.loads(json.dumps(vars(cluster((4, 0), (2, 1)))))) == cluster(
        (4, 0), (2, 1)
    )


@pytest.mark.parametrize("trials", range(1, 9))
def test_as_many_workers_share_a_gpu_as_were_packed(trials: int) -> None:
    packing = Packing(trials=trials, reason="for a reason")
    plan = plan_of(Wish(gpus_per_trial="auto"), GPU, packing=packing)
    assert plan.workers == trials * GPU.gpus
    # Ray counts in ten-thousandths: rounded up, one would find no room.
    assert round(plan.gpus_per_trial * 10_000) * trials <= 10_000
    assert plan.cpus_per_trial == max(1, GPU.cpus // plan.workers)
    assert "for a reason" in plan.reasons


def test_trials_that_share_a_gpu_are_not_thought_faster_together() -> None:
    wish = Wish(hours=0.5)
    alone, shared = (plan_of(replace(wish, gpus_per_trial=g), GPU) for g in (1.0, 0.25))
    assert shared.epochs <= alone.epochs and len(shared.backbones) <= len(alone.backbones)


def test_compiling_is_asked_for_and_told() -> None:
    assert not plan_of(Wish()).compile
    plan = plan_of(Wish(compile=True))
    assert plan.compile and any("compiled" in reason for reason in plan.reasons)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_a_plan_of_a_run_from_before_compiling_is_read() -> None:
    saved = plan_of(Wish()).to_dict()
    del saved["compile"]
    assert Plan.from_dict(saved) == plan_of(Wish())
    del saved["epochs"]
    with pytest.raises(UserError, match="has no epochs"):
        Plan.from_dict(saved)


def test_little_memory_makes_fewer_workers() -> None:
    scarce = Resources(cpus=16, gpus=0, memory_bytes=6 * 10**9)
    assert plan_of(Wish(), scarce).workers == 4


def test_more_hours_never_mean_fewer_epochs_or_backbones() -> None:
    plans = [plan_of(Wish(hours=h)) for h in (0.02, 0.1, 0.25, 1, 4, 24)]
    assert [p.epochs for p in plans] == sorted(p.epochs for p in plans)
    counts = [len(p.backbones) for p in plans]
    assert counts == sorted(counts) and counts[0] >= 1


def test_a_short_run_leaves_out_what_would_eat_it() -> None:
    plan = plan_of(Wish(hours=0.1), rows=2500, native=224)
    assert "resnet10t" not in plan.backbones and "test_resnet" in plan.backbones
    assert any("without" in reason for reason in plan.reasons)


def test_what_was_asked_for_is_kept() -> None:
    wish = Wish(trials=3, epochs=7, image_sizes=(48, 32), backbones=("resnet18",))
    plan = plan_of(wish)
    assert (plan.trials, plan.epochs, plan.image_sizes) == (3, 7, (48, 32))
    assert plan.backbones == ("resnet18",) and plan.store_size == 48


def test_the_store_is_never_larger_than_the_images() -> None:
    assert plan_of(Wish(image_sizes=(512,)), native=64).store_size == 64
    assert plan_of(Wish(), GPU, native=512).store_size == 299


def test_every_choice_has_a_reason() -> None:
    text = "\n".join(plan_of(Wish(hours=0.25)).reasons)
    for word in ("workers", "threads", "image size", "epochs", "backbones", "rungs", "stored"):
        assert word in text


def test_a_plan_comes_back_from_json() -> None:
    plan = plan_of(Wish(hours=0.25))
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_impossible_wishes_are_told_all_at_once() -> None:
    with pytest.raises(UserError) as caught:
        check_wish(Wish(trials=0, hours=-1, epochs=0, image_sizes=(0, 64), gpus_per_trial=1.5))
    text = str(caught.value)
    assert len(caught.value.faults) == 5
    for word in ("--trials is 0", "--hours is -1", "--epochs is 0", "--image-size is 0"):
        assert word in text


def test_gpus_that_are_not_there_are_refused() -> None:
    with pytest.raises(UserError, match="no GPU was found"):
        plan_of(Wish(gpus_per_trial=1))
    with pytest.raises(UserError, match="--gpus-per-trial is auto but no GPU was found"):
        plan_of(Wish(gpus_per_trial="auto"))
    with pytest.raises(UserError, match=r"only the cluster has some; give a share"):
        check_gpus(Wish(gpus_per_trial="auto"), GPU, here=0)
    check_gpus(Wish(gpus_per_trial="auto"), GPU, here=1)
    check_gpus(Wish(gpus_per_trial=0.5), GPU, here=0)
    with pytest.raises(UserError, match="--gpus-per-trial is 8 but the number of GPUs is 4"):
        plan_of(Wish(gpus_per_trial=8), GPU)
    with pytest.raises(UserError, match="there are 2 CPUs"):
        plan_of(Wish(cpus_per_trial=8))


@pytest.mark.parametrize("gpus", (1.5, 2.01))
def test_a_gpu_is_shared_or_taken_whole(gpus: float) -> None:
    with pytest.raises(UserError, match=rf"--gpus-per-trial is {gpus:g}; a trial has a share"):
        check_wish(Wish(gpus_per_trial=gpus))
    for whole in (0.5, 1.0, 2.0, 8.0):
        check_wish(Wish(gpus_per_trial=whole))


def test_a_trial_may_have_the_gpus_of_several_hosts() -> None:
    plan = plan_of(Wish(gpus_per_trial=2.0), GPU, native=224)
    assert (plan.workers, plan.cpus_per_trial, plan.gpus_per_trial) == (2, 16, 2.0)
    assert "threads per GPU 8: its CPUs" in plan.reasons
    pair = cluster((16, 0), (4, 1), (8, 2))
    plan = plan_of(Wish(gpus_per_trial=2.0), pair, native=224)
    assert (plan.workers, plan.cpus_per_trial) == (1, 8)
    assert plan_of(Wish(gpus_per_trial=3.0), pair, native=224).workers == 1
    # Few cores: two GPUs of a trial share one.
    plan = plan_of(Wish(gpus_per_trial=4.0), cluster((2, 4)), native=224)
    assert (plan.workers, plan.cpus_per_trial) == (1, 2)
    with pytest.raises(UserError, match="a host with GPUs has at most 8 CPUs"):
        plan_of(Wish(gpus_per_trial=2.0, cpus_per_trial=32), pair, native=224)


@pytest.mark.parametrize("gpus", (0.25, 0.5, 1.0))
def test_up_to_one_gpu_a_trial_must_find_room_on_one_host(gpus: float) -> None:
    each = int(1 / gpus)
    assert cluster((3, 1), (2, 1)).places(1, gpus) == min(3, each) + min(2, each)


def journal_of(*kinds: str | int) -> list[Event]:
    """Events by their kind; a number stands for an extension by so many trials."""
    return [
        Event(seq=i, time=0.0, kind=k, trial=i, data={})
        if isinstance(k, str)
        else Event(seq=i, time=0.0, kind="extend", data={"trials": k})
        for i, k in enumerate(kinds)
    ]


def test_extensions_add_to_the_planned_trials_however_many_were_asked() -> None:
    plan = plan_of(Wish(trials=6))
    assert extended(plan, journal_of("session", "ask")) == plan
    for asked in (2, 6):
        assert extended(plan, journal_of(*["ask"] * asked, 3)).trials == 9
    assert extended(plan, journal_of("ask", 3, "ask", "session", 2, "ask")).trials == 11


@pytest.mark.parametrize("wish", [Wish(hours=1), Wish(hours=1, trials=100)])
def test_an_extended_run_goes_from_hours_to_trials(wish: Wish) -> None:
    """What counts is what was asked by then, since the hours ended the run and not the trials."""
    plan = extended(plan_of(wish), journal_of("session", *["ask"] * 7, 3, "ask", "ask"))
    assert (plan.trials, plan.hours) == (10, None)
    assert extended(plan_of(wish), journal_of(*["ask"] * 7, 3, *["ask"] * 2, 4)).trials == 14
