"""From a budget and what is there to epochs, rungs, concurrency and resources. Pure.

Every choice carries its reason; `search.run` prints them and stores them in run.json.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, replace
from dataclasses import fields as dataclass_fields
from typing import Any, Literal

from search.journal import Event
from search.policy.packing import Packing
from search.policy.rungs import Rung, make_rungs
from spaces.backbones import relative_cost, side_of
from spaces.errors import UserError

DEFAULT_TRIALS = 16
EPOCHS_CPU, EPOCHS_GPU = 12, 30
FULL_TRIALS = 8  # the budget should hold this many unpruned trials of the reference backbone
# Measured on real learning curves: benchmarks/search_policies.py, docs/decisions.md.
KEEP_INSIDE, KEEP_BETWEEN = 1 / 3, 1 / 2  # share that goes on at rungs in the first fold, between
MIN_MEMBERS, MEMBERS = 3, 8
SHARE = 1 / 4  # a recipe that eats more than this share of all worker time is not worth a try

# Training images per second of the reference backbones: test_efficientnet at 64 px on one CPU core
# (measured), resnet18 at 224 px with bf16 on one recent GPU (assumed until the run has measured).
REFERENCE_CPU, REFERENCE_GPU = 600.0, 2500.0
EVALUATION = 1.15  # evaluation and bookkeeping on top of training
START = 20.0  # seconds until the first step: Ray, imports
FINISH = 15.0  # seconds kept for the last ensemble, bundle and submission


def ranks_of(gpus: float) -> int:
    """Processes that train a trial together, when it has so many GPUs or a share of one."""
    return max(1, int(gpus))


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What there is to run on; on a cluster also what it may grow to."""

    cpus: int
    gpus: int
    memory_bytes: int
    hosts: tuple[tuple[int, int], ...] = ()  # CPUs and GPUs of each that a cluster has now

    @property
    def gpu(self) -> bool:
        return self.gpus > 0

    @property
    def parts(self) -> tuple[tuple[int, int], ...]:
        """CPUs and GPUs of each host, within which a trial must find room; what a cluster may grow
        by, hosts not being known yet, is one."""
        grow = (
            max(0, self.cpus - sum(cpus for cpus, _ in self.hosts)),
            max(0, self.gpus - sum(gpus for _, gpus in self.hosts)),
        )
        return (*self.hosts, grow) if any(grow) else self.hosts

    def places(self, cpus: int, gpus: float) -> int:
        """Trials of so many CPUs and GPUs, or such a share of one, that run at the same time. The
        GPUs of a trial may be on several hosts, each with as many of its CPUs."""
        ranks = ranks_of(gpus)
        each = math.floor(1 / min(gpus, 1)) if gpus else 0  # on one GPU
        room = (min(c * ranks // cpus, g * each) if gpus else c // cpus for c, g in self.parts)
        return sum(room) // ranks

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Resources":
        hosts = tuple((cpus, gpus) for cpus, gpus in data.get("hosts", ()))
        return cls(**{**data, "hosts": hosts})


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the user asked for; None: the plan decides."""

    trials: int | None = None
    hours: float | None = None
    epochs: int | None = None
    image_sizes: tuple[int, ...] = ()
    backbones: tuple[str, ...] = ()
    gpus_per_trial: float | Literal["auto"] | None = None
    cpus_per_trial: int | None = None
    compile: bool = False


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the data and the task say."""

    rows: int
    folds: int
    backbones: tuple[str, ...]  # that may be searched
    views: int = 1  # images per row


@dataclass(frozen=True, kw_only=True)
class ImagePlan:
    """At which sizes images are searched and stored; needed before folds can be made."""

    sizes: tuple[int, ...]  # pixels; the first is the default
    store_size: int  # pixels, side of the stored images
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be done. `reasons` has a sentence for each choice."""

    trials: int | None  # None: as many as fit into the hours
    hours: float | None
    epochs: int
    image_sizes: tuple[int, ...]
    backbones: tuple[str, ...]
    workers: int
    cpus_per_trial: int
    gpus_per_trial: float
    compile: bool = False  # steps of training, by torch.compile
    store_size: int  # pixels, side of the stored images
    rungs: tuple[Rung, ...]
    keep: tuple[float, ...]  # at each rung, the share of its arrivals that goes on
    members: int  # trials that should be finished, for the ensemble to choose from
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def side(self, backbone: str) -> int:
        """Pixels at which a backbone sees images, unless a recipe says otherwise."""
        return side_of(backbone, self.image_sizes[0])

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Plan":
        fields = dict(data)
        needed = {f.name for f in dataclass_fields(cls) if f.default is MISSING}
        if missing := needed - fields.keys():
            raise UserError(
                f"the run's plan has no {', '.join(sorted(missing))}: another version made it; use "
                "that version, or start a new run"
            )
        for name in ("image_sizes", "backbones", "keep", "reasons"):
            fields[name] = tuple(fields[name])
        fields["rungs"] = tuple(Rung(**rung) for rung in fields["rungs"])
        return cls(**fields)


def check_wish(wish: Wish) -> None:
    """Raises UserError for every impossible value at once."""
    gpus = None if wish.gpus_per_trial == "auto" else wish.gpus_per_trial
    faults = [
        f"--{name} is {value:g}; it must be greater than 0"
        for name, value in (
            ("trials", wish.trials), ("hours", wish.hours), ("epochs", wish.epochs),
            ("cpus-per-trial", wish.cpus_per_trial), ("gpus-per-trial", gpus),
        )
        if value is not None and not (value > 0 and math.isfinite(value))
    ]  # fmt: skip
    if gpus and 1 < gpus < math.inf and gpus != int(gpus):
        faults.append(
            f"--gpus-per-trial is {gpus:g}; a trial has a share of one GPU or several whole ones: "
            "give a value in (0, 1], a whole number, or auto"
        )
    faults += [
        f"--image-size is {size}; it must lie in [16, 2048] pixels"
        for size in wish.image_sizes
        if not 16 <= size <= 2048
    ]
    if faults:
        raise UserError(faults)


def check_gpus(wish: Wish, resources: Resources, here: int) -> None:
    """Raises UserError for GPUs that are not there; `here` are those of this machine, on one of
    which "auto" would measure."""
    asked = wish.gpus_per_trial
    if asked and not resources.gpu:
        raise UserError(
            f"--gpus-per-trial is {asked if asked == 'auto' else f'{asked:g}'} but no GPU was "
            "found; leave it out to run on CPU cores"
        )
    if asked and asked != "auto" and asked > max(resources.gpus, 1):
        raise UserError(
            f"--gpus-per-trial is {asked:g} but the number of GPUs is {resources.gpus}; give at "
            "most that"
        )
    if wish.gpus_per_trial == "auto" and not here:
        raise UserError(
            "--gpus-per-trial is auto, which measures on a GPU of this machine, but only the "
            "cluster has some; give a share, for example 0.5, or start from a machine with a GPU"
        )


def plan_images(wish: Wish, native: int, backbones: Sequence[str], gpu: bool) -> ImagePlan:
    """Image sizes, given the usual side `native` of the images in pixels."""
    if wish.image_sizes:
        sizes, why = wish.image_sizes, "asked for"
    elif gpu:
        sizes = tuple(s for s in (192, 224, 256, 299) if s <= 1.4 * native) or (max(native, 32),)
        # The first size is the default of the first recipes: the one nearest the images' own.
        sizes = tuple(sorted(sizes, key=lambda s: abs(s - native)))
        why = f"images are {native} px"
    else:
        sizes = (min(native, 64),)
        why = f"images are {native} px; CPU cores afford at most 64"
    # Upscaling adds no information: the store never exceeds the images themselves.
    wanted = max([*sizes, *(side_of(b, 0) for b in backbones)])
    store_size = min(wanted, native)
    return ImagePlan(
        sizes=sizes,
        store_size=store_size,
        reasons=(
            f"image size {', '.join(map(str, sizes))}: {why}",
            f"images are stored once at {store_size} px; other sizes are made on the device",
        ),
    )


def make_plan(
    wish: Wish,
    facts: Facts,
    images: ImagePlan,
    resources: Resources,
    packing: Packing | None = None,
) -> Plan:
    """Decide what the user left open; `packing` is needed where "auto" GPUs are asked for.

    Raises UserError when the wish cannot be met: more CPUs or GPUs for a trial than there are.
    """
    reasons: list[str] = []
    gpu = resources.gpu
    workers, cpus, gpus = share_out(wish, resources, packing, reasons)
    if wish.compile:
        reasons.append("training steps are compiled: asked for")
    reasons += images.reasons
    sizes, offered = images.sizes, facts.backbones
    trials, hours = wish.trials, wish.hours
    if trials is None and hours is None:
        trials = DEFAULT_TRIALS
        reasons.append(f"trials {trials}: neither --trials nor --hours was given")

    train_rows = facts.rows * (facts.folds - 1) / facts.folds
    # Trials that share a GPU gain from it; how much is not known before the run has measured.
    rate = REFERENCE_GPU * gpus if gpu else REFERENCE_CPU * cpus**0.8

    def fold_epoch_seconds(backbone: str, size: int) -> float:
        images = train_rows * facts.views
        return EVALUATION * images * relative_cost(backbone, size, gpu) / rate

    costs = {b: fold_epoch_seconds(b, side_of(b, sizes[0])) for b in offered}
    cheapest = min(costs.values())
    worker_seconds = None
    if hours is not None:
        worker_seconds = max(1.0, hours * 3600 - START - FINISH) * workers

    epochs = wish.epochs
    usual = EPOCHS_GPU if gpu else EPOCHS_CPU
    if epochs is None and worker_seconds is None:
        epochs = usual
        reasons.append(f"epochs {epochs} per fold: usual for {'a GPU' if gpu else 'CPU cores'}")
    elif epochs is None:
        fit = worker_seconds / (FULL_TRIALS * facts.folds * cheapest)  # type: ignore[operator]
        epochs = max(3, min(usual, int(fit)))
        reasons.append(
            f"epochs {epochs} per fold: {FULL_TRIALS} whole trials of the cheapest backbone should "
            f"fit into {hours:g} h on {workers} workers (usual is {usual})"
        )

    backbones = offered
    if worker_seconds is not None and not wish.backbones:
        limit = SHARE * worker_seconds
        backbones = tuple(b for b in offered if costs[b] * epochs * facts.folds <= limit)
        dropped = [b for b in offered if b not in backbones]
        if not backbones:
            backbones = (min(costs, key=lambda b: costs[b]),)
            dropped = [b for b in offered if b not in backbones]
        if dropped:
            reasons.append(
                f"without {', '.join(dropped)}: one trial would take more than "
                f"{SHARE:.0%} of all worker time"
            )
    reasons.append(f"backbones: {', '.join(backbones)}")

    rungs = make_rungs(facts.folds, epochs)
    keep = tuple(KEEP_INSIDE if rung.epoch else KEEP_BETWEEN for rung in rungs)
    reasons.append(
        "rungs, and the share that goes on at each: "
        + ", ".join(f"{r.words} {share:.0%}" for r, share in zip(rungs, keep, strict=True))
    )
    if trials is not None:
        members = min(MEMBERS, max(MIN_MEMBERS, trials // 3), trials)
    else:
        # At most a third of the time goes into trials for the sake of their number.
        assert worker_seconds is not None
        whole = worker_seconds / (epochs * facts.folds * min(costs[b] for b in backbones))
        members = min(MEMBERS, max(MIN_MEMBERS, int(whole / 3)))
    reasons.append(f"members: at least {members} trials are finished, for the ensemble")
    return Plan(
        trials=trials, hours=hours, epochs=epochs, image_sizes=sizes, backbones=backbones,
        workers=workers, cpus_per_trial=cpus, gpus_per_trial=gpus,
        compile=wish.compile, store_size=images.store_size, rungs=rungs,
        keep=keep, members=members, reasons=tuple(reasons),
    )  # fmt: skip


def extended(plan: Plan, events: Iterable[Event]) -> Plan:
    """`plan` with what the journal's "extend" and "ablate" events added: that many trials more than
    the plan had, or than were asked by then where hours limited the run; hours limit it no longer.
    """
    asked = 0
    for event in events:
        if event.kind == "ask":
            asked += 1
        elif event.kind in ("extend", "ablate"):
            before = asked if plan.trials is None or plan.hours is not None else plan.trials
            plan = replace(plan, trials=before + event.data["trials"], hours=None)
    return plan


def share_out(
    wish: Wish,
    resources: Resources,
    packing: Packing | None = None,
    reasons: list[str] | None = None,
) -> tuple[int, int, float]:
    """Number of workers, CPUs of each, GPU share of each; why is added to `reasons`."""
    reasons = [] if reasons is None else reasons
    check_gpus(wish, resources, here=resources.gpus)
    gpus = 0.0
    if resources.gpu:
        if wish.gpus_per_trial == "auto":
            assert packing is not None
            gpus = packing.gpus_per_trial
            reasons.append(packing.reason)
        else:
            gpus = wish.gpus_per_trial or 1.0
        each = math.floor(1 / min(gpus, 1))
        cpus = wish.cpus_per_trial or max(
            1, min(c * ranks_of(gpus) // (g * each) for c, g in resources.parts if g)
        )
        workers = resources.places(cpus, gpus)
        if not workers:
            most = max(c for c, g in resources.parts if g)
            raise UserError(
                f"--cpus-per-trial is {cpus} but a host with GPUs has at most {most} CPUs; give at "
                "most that"
            )
        reasons.append(f"workers {workers}: {resources.gpus} GPUs, {gpus:g} for each trial")
    else:
        cpus = wish.cpus_per_trial or 1
        there = resources.places(cpus, 0)
        if not there:
            most = max(c for c, _ in resources.parts)
            where = "but there are" if len(resources.parts) == 1 else "but no host has more than"
            raise UserError(f"--cpus-per-trial is {cpus} {where} {most} CPUs; give at most that")
        # About 1 GB for torch, timm and a small network in each process.
        by_memory = max(1, int(resources.memory_bytes / 1.2e9) - 1)
        workers = min(there, by_memory)
        why = f"{resources.cpus} CPU cores, {cpus} for each trial"
        if len(resources.hosts) > 1:
            why = f"{len(resources.hosts)} hosts, {why}; more as hosts join"
        if workers < there:
            why += f", {resources.memory_bytes / 1e9:.0f} GB of memory"
        reasons.append(f"workers {workers}: {why}")
    ranks = ranks_of(gpus)
    whose = "worker" if ranks == 1 else "GPU"
    reasons.append(f"threads per {whose} {max(1, cpus // ranks)}: its CPUs")
    return workers, cpus, gpus
