"""Warm start: recipes of earlier runs inside the new space, ranks only from runs that agree."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.journal import Journal
from search.policy.priors import (
    PriorRun,
    PriorTrial,
    first_from,
    fit,
    identity,
    observations_from,
    ranked,
)
from search.run_folder import RunFolder, write_json
from search.warm_start import load, notes, read_prior, read_priors, save
from spaces.errors import UserError
from spaces.means import Means
from spaces.space import Space
from spaces.tasks.gene_expr import CPU_BACKBONES, GPU_BACKBONES, TASK
from tests.drawn import Drawn

METRIC = {"name": "pearson", "args": {}, "outputs": 2, "lists": {}}
TARGETS = ("A", "B")
OWN = identity("gene_expr", METRIC, TARGETS)
ORDER = [1, 0]  # folds as visited


def space_of(backbones: tuple[str, ...], pretrained: bool, size: int = 64) -> Space:
    return TASK.space(
        Means(
            gpu=pretrained, pretrained=pretrained, image_sizes=(size,), backbones=backbones,
            epochs=5, train_rows=600,
        )
    )  # fmt: skip


CPU = space_of(CPU_BACKBONES, pretrained=False)
NARROW = space_of(CPU_BACKBONES[:2], pretrained=False)
GPU = space_of(GPU_BACKBONES, pretrained=True, size=224)


def drawn(seed: int, space: Space = CPU) -> dict[str, Any]:
    choose = Drawn(random.Random(seed))
    space.define(choose)
    return choose.params


def prior_of(seeds: Sequence[int], own: Mapping[str, Any] = OWN, name: str = "old") -> PriorRun:
    """Trials of random recipes, of which every second has finished; best first."""
    trials = [
        PriorTrial(params=drawn(seed), finished=place % 2 == 0, rank=rank)
        for seed, (place, rank) in zip(
            seeds, ranked([(-i,) for i in range(len(seeds))]), strict=True
        )
    ]
    return PriorRun(name=name, identity=own, trials=tuple(trials))


class Old:
    """An earlier run's folder: run.json and a journal."""

    def __init__(self, root: Path, **facts: Any) -> None:
        self.root = root
        root.mkdir(parents=True)
        given = {"task": "gene_expr", "metric": METRIC, "target_names": TARGETS,
                 "fold_order": ORDER, **facts}  # fmt: skip
        write_json(root / "run.json", given)
        self.journal = Journal(root / "journal.jsonl")
        self.count = 0

    def add(
        self, state: str | None, params: Mapping[str, Any], epochs: int, *folds: float
    ) -> "Old":
        """A trial with these folds' scores and `epochs` epochs, which score .1, .2, ..."""
        number, self.count = self.count, self.count + 1
        recipe = {"backbone": params["backbone"], "image_size": 64}
        self.journal.append("ask", number, params=dict(params), recipe=recipe, source="random")
        self.journal.append("attempt", number, 1, folds=[0, 1])
        points = [
            {"fold": ORDER[0], "epoch": e, "score": 0.1 * e, "seconds": 1.0, "peak_memory": 1,
             "micro_batch": 8}
            for e in range(1, epochs + 1)
        ]  # fmt: skip
        self.journal.append("epochs", number, 1, points=points)
        for fold, score in zip(ORDER, folds, strict=False):
            self.journal.append("fold", number, 1, fold=fold, score=score, params=5, seconds=0.1,
                                parts={})  # fmt: skip
        if state is not None:
            self.journal.append("end", number, 1, state=state, reason="")
        return self


@given(st.integers(0, 10**6), st.sampled_from([CPU, NARROW, GPU]))
def test_what_is_fitted_lies_in_the_space_and_keeps_all_that_it_has(
    seed: int, space: Space
) -> None:
    params = drawn(seed)
    found = fit(space, params)
    assert found is not None and space.contains(found)
    if space.contains(params):
        assert found == params
    for name, value in params.items():
        if name in found and found[name] != value:
            assert not space.contains({**found, name: value})


def test_nothing_to_keep_is_no_recipe() -> None:
    assert fit(CPU, {}) is None
    assert fit(CPU, {"backbone": "unheard_of", "lr@cnn": 1e9, "wat": 3}) is None
    odd = {"backbone": ["a"], "lr@cnn": "fast", "drop": float("nan"), "tta": 4}
    found = fit(CPU, odd)
    assert found == {**CPU.fixed({})[1], "tta": 4}


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(0, 8))
def test_first_recipes_are_different_finished_and_within_the_limit(
    seeds: list[int], limit: int
) -> None:
    prior = prior_of(seeds)
    for space in (CPU, NARROW, GPU):
        found = first_from([prior], space, limit)
        assert len(found) <= limit and all(space.contains(params) for params in found)
        assert all(found.count(params) == 1 for params in found)
        assert found == first_from([prior], space, 100)[:limit]
    finished = [trial.params for trial in prior.trials if trial.finished]
    found = first_from([prior], CPU, 100)
    assert all(params in finished for params in found)
    assert len(found) == len({json.dumps(params) for params in finished})
    if finished and limit:
        assert first_from([prior], CPU, limit)[0] == finished[0]


def test_the_best_of_each_backbone_and_run_come_first() -> None:
    def trial(backbone: str, lr: float) -> PriorTrial:
        params = CPU.fixed({"backbone": backbone, "lr": lr})[1]
        return PriorTrial(params=params, finished=True, rank=0.5)

    one = (trial("test_resnet", 0.01), trial("test_resnet", 0.02), trial("lcnet_050", 0.03))
    two = (trial("resnet10t", 0.004), trial("test_resnet", 0.01))
    runs = [PriorRun(name=str(i), identity=OWN, trials=t) for i, t in enumerate((one, two))]
    rates = [params["lr@cnn"] for params in first_from(runs, CPU, 9)]
    assert rates == [0.01, 0.004, 0.03, 0.02]


def test_observations_come_only_from_the_same_task_metric_and_targets() -> None:
    others = [
        identity("protein_atlas", METRIC, TARGETS),
        identity("gene_expr", {**METRIC, "name": "rmse"}, TARGETS),
        identity("gene_expr", {**METRIC, "args": {"nan": "drop"}}, TARGETS),
        identity("gene_expr", METRIC, ("A", "C")),
    ]
    for other in others:
        assert observations_from([prior_of(range(6), other)], CPU, OWN) == []
        assert first_from([prior_of(range(6), other)], CPU, 2)
    fitted = identity("gene_expr", {**METRIC, "lists": {"heg": [1]}}, TARGETS)
    found = observations_from([prior_of(range(6), fitted)], CPU, OWN)
    assert [o.params for o in found] == [drawn(seed) for seed in range(6)]
    assert [o.rank for o in found] == sorted((o.rank for o in found), reverse=True)


@given(st.lists(st.integers(0, 40), max_size=12))
def test_observations_lie_in_the_space_unchanged(seeds: list[int]) -> None:
    prior = prior_of(seeds)
    for space in (CPU, NARROW, GPU):
        found = observations_from([prior], space, OWN)
        assert [o.params for o in found] == [
            t.params for t in prior.trials if space.contains(t.params)
        ]
        assert all(0 < o.rank < 1 for o in found)


@given(st.lists(st.integers(-3, 3), max_size=20))
def test_ranks_fall_with_the_standing_and_are_even(standings: list[int]) -> None:
    found = ranked([(s,) for s in standings])
    assert sorted(index for index, _ in found) == list(range(len(standings)))
    ordered = [standings[index] for index, _ in found]
    assert ordered == sorted(standings, reverse=True)
    ranks = [rank for _, rank in found]
    assert ranks == sorted(ranks, reverse=True) and all(0 < rank < 1 for rank in ranks)
    assert not ranks or sum(ranks) / len(ranks) == pytest.approx(0.5)


def test_the_deeper_is_the_better_then_the_score_and_what_was_not_judged_does_not_count(
    tmp_path: Path,
) -> None:
    p = [drawn(seed) for seed in range(9)]
    old = Old(tmp_path / "old")
    old.add("pruned", p[0], 2).add("finished", p[1], 5, 0.4, 0.2).add("finished", p[2], 5, 0.4, 0.3)
    old.add("diverged", p[3], 5, 0.9).add("pruned", p[4], 5, 0.8).add("pruned", p[5], 3)
    old.add("failed", p[6], 5, 0.9).add("stopped", p[7], 5, 0.9).add(None, p[8], 5, 0.9)
    prior = read_prior(tmp_path / "old")
    assert [t.params for t in prior.trials] == [p[2], p[1], p[4], p[5], p[0], p[3]]
    assert [t.finished for t in prior.trials] == [True, True, False, False, False, False]
    assert prior.identity == OWN


def test_a_journal_cut_anywhere_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    old = Old(tmp_path / "old").add("finished", drawn(0), 2, 0.5, 0.5)
    raw = (old.root / "journal.jsonl").read_bytes()
    for cut in range(0, len(raw), 7):
        (old.root / "journal.jsonl").write_bytes(raw[:cut])
        assert read_prior(old.root).trials == ()
    (old.root / "journal.jsonl").unlink()
    assert read_prior(old.root).trials == ()


def test_what_was_kept_is_read_back_when_the_earlier_run_is_gone(tmp_path: Path) -> None:
    Old(tmp_path / "old").add("finished", drawn(0), 2, 0.5, 0.5).add("pruned", drawn(1), 1)
    (tmp_path / "new").mkdir()
    run = RunFolder(tmp_path / "new")
    assert load(run) == []
    priors = read_priors([tmp_path / "old"], run.root)
    save(run, priors)
    (tmp_path / "old").rename(tmp_path / "elsewhere")
    assert load(run) == priors
    assert observations_from(load(run), CPU, OWN) == observations_from(priors, CPU, OWN) != []
    run.warm_start.write_text('{"format": 2, "runs": [{"name": "x"}]}')
    with pytest.raises(UserError, match="is damaged"):
        load(run)


def test_all_that_is_wrong_with_the_runs_is_said_at_once(tmp_path: Path) -> None:
    old, new = Old(tmp_path / "old"), tmp_path / "new"
    (tmp_path / "plain").mkdir()
    (tmp_path / "file").write_text("")
    newer = Old(tmp_path / "newer")
    (newer.root / "run.json").write_text('{"format": 99}')
    lacking = Old(tmp_path / "lacking", metric={"name": "rmse"})
    torn = Old(tmp_path / "torn")
    torn.journal.append("ask", 0, params={})
    names = ("old", "plain", "file", "absent", "newer", "lacking", "torn", "new", "./old")
    with pytest.raises(UserError) as caught:
        read_priors([tmp_path / name for name in names], new)
    text = str(caught.value)
    assert len(caught.value.faults) == 8
    for part in ("no run.json", "absent is not a folder", "file is not a folder", "format 99",
                 f"{lacking.root}/run.json lacks 'args'", "line 1 cannot be understood",
                 "is the run itself", "twice"):  # fmt: skip
        assert part in text, part
    assert read_priors([old.root], new)[0].trials == ()


def test_every_run_gets_a_sentence_about_what_it_gives() -> None:
    same, other = prior_of(range(4), name="same"), prior_of([1], {**OWN, "task": "x"}, "other")
    none = PriorRun(name="none", identity=OWN, trials=())
    first, second, third = notes([same, other, none], CPU, OWN)
    assert "same: 2 finished recipes may come first, 4 of 4 trials guide" in first
    assert "other" in second and "task (x)" in second
    assert third.startswith("warning") and "none" in third
