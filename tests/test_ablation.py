"""One change at a time: which changes there are, what they did, and that all of them are tried."""

import csv
import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import ttest_rel

from search import ablation
from search import trials as states
from search.ablation import ask_for, rows, show, write
from search.director import Clock, Director
from search.journal import Event, Journal, read_events
from search.plan import extended
from search.policy.ablation import AGAIN, FACTOR, OPTIONS, changes, effect
from search.policy.rungs import make_rungs
from search.run import check_resume, parser
from search.run_folder import RunFolder
from search.sampler import Sampler
from search.trials import Trials
from spaces.errors import UserError
from spaces.means import Means
from spaces.recipe import Recipe
from spaces.registry import load_task
from spaces.space import Choose, Space
from tests.drawn import Drawn
from tests.onehand import search
from tests.test_director import EPOCHS, FOLDS, ORDER, Killed, finalise, outcome, plan_of, work


@pytest.fixture(autouse=True)
def _nothing_is_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda fd: None)  # a killed process loses nothing without it


TASKS = ("gene_expr", "breast_path", "aneurysm", "protein_atlas", "csv")


def means_of(task: str, pretrained: bool) -> Means:
    loaded = load_task(task)
    views = loaded.layout.view_count
    backbones = ("test_resnet", "resnet10t", "test_vit") if pretrained else ("test_resnet",)
    return Means(
        gpu=False, pretrained=pretrained, image_sizes=(32, 64), backbones=backbones, epochs=5,
        train_rows=400, views=views, channels=loaded.layout.channel_count, outputs=4,
    )  # fmt: skip


# --- which changes there are


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_every_change_is_of_the_space_and_differs_in_what_it_names(
    task: str, pretrained: bool
) -> None:
    space = load_task(task).space(means_of(task, pretrained))
    for seed in range(8):
        drawn = Drawn(random.Random(seed))
        recipe = space.define(drawn)
        again, *found = changes(space, drawn.params, 7)
        assert (again.name, again.params, again.seed) == (AGAIN, drawn.params, 8)
        assert found
        for change in found:
            assert space.contains(change.params), change.words
            assert change.seed == 7 and change.old != change.new
            before = {name.split("@")[0]: v for name, v in drawn.params.items()}
            after = {name.split("@")[0]: v for name, v in change.params.items()}
            assert (before[change.name], after[change.name]) == (change.old, change.new)
            # What is asked both before and after has kept its answer.
            both = drawn.params.keys() & change.params.keys()
            changed = {name for name in both if drawn.params[name] != change.params[name]}
            assert {name.split("@")[0] for name in changed} == {change.name}
        assert len({str(sorted(c.params.items())) for c in found}) == len(found)
        assert {c.name for c in found} <= {name.split("@")[0] for name in drawn.params}
        assert recipe == space.fixed(drawn.params)[0]


def toy(choose: Choose) -> Recipe:
    """A space with something that hangs on a choice, and ranges of both kinds."""
    optimizer = choose.pick("optimizer", ("adamw", "sgd"), "adamw")
    factor = choose.real("factor", 1, 9, 3) if optimizer == "sgd" else 1.0
    lr = choose.real("lr@cnn", 1e-3, 1e-1, 1e-2, log=True)
    return Recipe(
        backbone="test_resnet", optimizer=optimizer, lr=lr, drop=choose.real("drop", 0, 0.4, 0.1),
        weight_decay=factor, tta=choose.pick("tta", (1, 4, 8), 1),
        image_size=choose.pick("image_size", (32, 40, 48, 56, 64), 32),
    )  # fmt: skip


SPACE = Space(toy)
PARAMS = SPACE.fixed({})[1]


def test_numbers_move_within_their_ranges_and_choices_by_a_few() -> None:
    found = changes(SPACE, {**PARAMS, "lr@cnn": 0.05, "drop": 0.05}, 0)
    new = {name: [c.new for c in found if c.name == name] for name in dict.fromkeys(
        c.name for c in found
    )}  # fmt: skip
    assert new == {
        AGAIN: [None], "optimizer": ["sgd"], "lr": [pytest.approx(0.05 / FACTOR)],
        "drop": [pytest.approx(0.15)], "tta": [4, 8], "image_size": [40, 48, 56],
    }  # fmt: skip
    assert len(new["image_size"]) == OPTIONS


def test_what_hangs_on_a_choice_comes_and_goes_with_it() -> None:
    (sgd,) = (c for c in changes(SPACE, PARAMS, 0) if c.name == "optimizer")
    assert sgd.params == {**PARAMS, "optimizer": "sgd", "factor": 3}
    back = [c for c in changes(SPACE, sgd.params, 0) if c.name == "optimizer"]
    assert [c.params for c in back] == [PARAMS]
    assert "factor" in {c.name for c in changes(SPACE, sgd.params, 0)}


def test_the_named_parameters_alone_are_changed_and_the_seed_in_any_case() -> None:
    found = changes(SPACE, PARAMS, 3, ["lr", "tta"])
    assert [c.name for c in found] == [AGAIN, "lr", "lr", "tta", "tta"]
    assert [c.words for c in found] == [
        AGAIN, "lr 0.01 -> 0.00333", "lr 0.01 -> 0.03", "tta 1 -> 4", "tta 1 -> 8",
    ]  # fmt: skip
    assert [c.seed for c in found] == [4, 3, 3, 3, 3]


def test_a_name_that_the_recipe_does_not_have_is_told() -> None:
    with pytest.raises(UserError, match=r"--ablate names lt, factor,.*lr"):
        changes(SPACE, PARAMS, 0, ["lt", "drop", "factor"])


# --- what they did


@pytest.mark.parametrize("folds", [2, 3, 5, 10])
def test_the_interval_is_that_of_students_paired_test(folds: int) -> None:
    rng = np.random.default_rng(folds)
    base = rng.normal(size=folds)
    scores = base + 0.3 * rng.normal(size=folds) + 0.2
    found, wanted = effect(scores.tolist(), base.tolist()), ttest_rel(scores, base)
    interval = wanted.confidence_interval(0.95)
    assert found.difference == pytest.approx(np.mean(scores - base))
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert found.clear == (wanted.pvalue < 0.05)


def test_of_one_fold_nothing_is_clear_and_folds_must_match() -> None:
    found = effect([1.0], [0.2])
    assert (found.difference, found.low, found.high) == (0.8, -np.inf, np.inf)
    assert not found.clear
    assert effect([0.7, 0.9], [0.5, 0.7]).clear  # the same in every fold
    with pytest.raises(ValueError, match="longer"):
        effect([1.0], [0.2, 0.3])


# --- who asks, and who goes on


def end(journal: Journal, number: int, recipe: dict[str, Any], score: float) -> None:
    journal.append("end", number, 1, state=states.FINISHED, reason="", score=score, pooled=0.0,
                   fold_scores=[score - 0.1, score + 0.1, score])  # fmt: skip


def sampler_on(journal: Journal, seed: int = 0) -> Sampler:
    sampler = Sampler(
        SPACE_SAMPLED, seed, backbones=("test_resnet",), rungs=make_rungs(FOLDS, EPOCHS),
        folds=FOLDS, epochs=EPOCHS, first=(),
    )  # fmt: skip
    journal.listen(sampler.apply)
    return sampler


def sampled(choose: Choose) -> Recipe:
    choose.pick("backbone", ("test_resnet",), "test_resnet")
    return toy(choose)


SPACE_SAMPLED = Space(sampled)


def ask(journal: Journal, sampler: Sampler, number: int) -> tuple[str, dict[str, Any], int]:
    params, recipe, source = sampler.ask(number, ("test_resnet",), False)
    journal.append("ask", number, params=params, recipe=recipe.to_dict(), source=source)
    end(journal, number, recipe.to_dict(), 0.5 + 0.01 * number)
    return source, params, recipe.seed


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_changes_are_asked_in_order_and_a_replayed_journal_asks_the_same(
    tmp_path: Path, cut: int
) -> None:
    journal = Journal(tmp_path / "j")
    sampler = sampler_on(journal)
    first = [ask(journal, sampler, number) for number in range(4)]
    assert "ablate" not in {source for source, _, _ in first}
    count = ask_for(journal, SPACE_SAMPLED, ["lr", "image_size"])
    wanted = changes(SPACE_SAMPLED, first[3][1], first[3][2], ["lr", "image_size"])
    assert count == len(wanted) >= 5
    done = [ask(journal, sampler, 4 + n) for n in range(cut)]
    journal.close()
    again = Journal(tmp_path / "j")
    sampler = sampler_on(again)
    done += [ask(again, sampler, 4 + cut + n) for n in range(count - cut)]
    assert done == [("ablate", c.params, c.seed) for c in wanted]
    assert ask(again, sampler, 4 + count)[0] != "ablate"


def test_the_best_finished_trial_is_the_one_that_is_changed(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    for number, (state, score) in enumerate(
        [(states.FINISHED, 0.4), (states.PRUNED, 0.9), (states.FINISHED, 0.6),
         (states.FINISHED, 0.6)]
    ):  # fmt: skip
        recipe = Recipe(backbone="test_resnet", seed=number).to_dict()
        journal.append("ask", number, params=PARAMS, recipe=recipe, source="random")
        journal.append("end", number, 1, state=state, reason="", fold_scores=[score] * 3)
    count = ask_for(journal, SPACE, [])
    event = journal.events[-1]
    assert (event.kind, event.data["base"], event.data["trials"]) == ("ablate", 2, count)
    assert event.data["changes"][0]["seed"] == 3 and len(event.data["changes"]) == count


def test_without_a_finished_trial_there_is_nothing_to_change(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    with pytest.raises(UserError, match="needs a finished trial"):
        ask_for(journal, SPACE, [])
    assert not journal.events


def test_the_plan_grows_by_the_changes(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    for number in range(3):
        journal.append("ask", number, params={}, recipe={})
    journal.append("ablate", trials=5, base=0, changes=[])
    assert extended(plan_of(12), journal.events).trials == 17
    timed = extended(plan_of(None, hours=1), journal.events)
    assert (timed.trials, timed.hours) == (8, None)
    journal.append("extend", trials=2)
    assert extended(plan_of(12), journal.events).trials == 19


class Worst:
    """Good recipes, then an ablation of hopeless ones."""

    def __init__(self, good: int) -> None:
        self.good = good

    def ask(
        self, number: int, backbones: tuple[str, ...], late: bool
    ) -> tuple[dict[str, Any], Recipe, str]:
        quality = random.Random(number).random()
        if number < self.good:
            return {}, Recipe(backbone=backbones[0], lr=1 + quality), "random"
        return {}, Recipe(backbone=backbones[0], lr=1e-3 * (1 + quality)), "ablate"

    def apply(self, event: Any) -> None:
        pass


def director_of(root: Path) -> Director:
    journal = Journal(root / "journal.jsonl")
    journal.append("session")
    return Director(
        RunFolder(root), plan_of(18), journal, Worst(12), fold_order=ORDER, clock=Clock(),
        finalise=finalise,
    )  # fmt: skip


def test_no_change_is_pruned_however_bad_it_is(tmp_path: Path) -> None:
    director = director_of(tmp_path)
    work(director)
    state = {n: t.state for n, t in director.trials.all.items()}
    assert {state[n] for n in range(12, 18)} == {states.FINISHED}
    assert states.PRUNED in state.values()
    reasons = {
        e.data["reason"] for e in read_events(tmp_path / "journal.jsonl")[0]
        if e.kind == "decision" and e.trial >= 12 and e.data["verdict"] == "goes on"
    }  # fmt: skip
    assert any("one change is compared" in reason for reason in reasons)


def test_a_driver_that_dies_after_any_event_of_an_ablation_prunes_none(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    work(director_of(whole))
    lines = (whole / "journal.jsonl").read_bytes().splitlines(keepends=True)
    events = read_events(whole / "journal.jsonl")[0]
    begin = next(i for i, e in enumerate(events) if e.kind == "ask" and e.trial == 12)
    stops = [i for i in range(begin, len(events)) if events[i].kind in ("rung", "decision")]
    for stop in stops:
        broken = tmp_path / f"broken-{stop}"
        broken.mkdir()
        director = director_of(broken)

        def die(director: Director = director, stop: int = stop) -> None:
            if len(director._journal.events) > stop:
                raise Killed

        try:
            work(director, die)
        except Killed:
            director._journal.close()
            (broken / "journal.jsonl").write_bytes(b"".join(lines[: stop + 1]))
        again = director_of(broken)
        work(again)
        assert outcome(broken) == outcome(whole), f"died after event {stop}"


# --- the table


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """Trial 0; an ablation of lr whose last change failed; an ablation of tta of the new best."""
    journal = Journal(tmp_path / "j")
    trial = 0

    def tried(seed: int, params: dict[str, Any], score: float | None, source: str) -> None:
        nonlocal trial
        recipe = Recipe(backbone="test_resnet", seed=seed).to_dict()
        journal.append("ask", trial, params=params, recipe=recipe, source=source)
        if score is None:
            journal.append("end", trial, 1, state=states.DIVERGED, reason="the loss is nan")
        else:
            journal.append(
                "end", trial, 1, state=states.FINISHED, reason="",
                fold_scores=[score, score + 0.1, score - 0.1 + 0.01 * trial],
            )  # fmt: skip
        trial += 1

    tried(0, PARAMS, 0.5, "random")
    ask_for(journal, SPACE, ["lr"])
    tried(1, PARAMS, 0.4, "ablate")
    tried(0, PARAMS, 0.7, "ablate")
    tried(0, PARAMS, None, "ablate")
    tried(0, PARAMS, 0.2, "random")
    ask_for(journal, SPACE, ["tta"])
    tried(1, PARAMS, -0.05, "ablate")  # the mean over folds is almost nothing
    yield journal
    journal.close()


def trials_of(journal: Journal) -> Trials:
    trials = Trials()
    journal.listen(trials.apply)
    return trials


def test_every_change_has_a_row_against_its_own_base(journal: Journal) -> None:
    found = rows(journal, trials_of(journal))
    assert [(r["change"], r["trial"], r["state"]) for r in found] == [
        ("trial 0 as it is", 0, "finished"),
        ("lr 0.01 -> 0.00333", 2, "finished"),
        (AGAIN, 1, "finished"),
        ("lr 0.01 -> 0.03", 3, "diverged"),
        ("trial 2 as it is", 2, "finished"),
        (AGAIN, 5, "finished"),  # the other changes are still to come
    ]
    best = found[1]
    there, here = [0.5, 0.6, 0.4], [0.7, 0.8, 0.62]
    wanted = ttest_rel(here, there).confidence_interval(0.95)
    assert best["score"] == pytest.approx(np.mean(here))
    assert best["difference"] == pytest.approx(np.mean(here) - np.mean(there))
    assert (best["low"], best["high"]) == (pytest.approx(wanted.low), pytest.approx(wanted.high))
    assert found[0]["difference"] is None and found[3]["score"] is None


def test_a_score_of_nothing_is_a_score() -> None:
    trials, journal = Trials(), SimpleJournal()
    for number, scores in enumerate([[0.1, 0.3], [0.0, 0.0], [-0.5, -0.1], None]):
        journal.hear(trials, "ask", number, params={}, recipe={"seed": 0},
                     source="ablate" if number else "random")  # fmt: skip
        state = states.FINISHED if scores else states.FAILED
        journal.hear(trials, "end", number, state=state, reason="",
                     **({"fold_scores": scores} if scores else {}))  # fmt: skip
    change = {"name": "tta", "old": 1, "new": 4, "params": {}, "seed": 0}
    journal.hear(trials, "ablate", -1, base=0, trials=3, changes=[change] * 3)
    found = rows(journal, trials)  # type: ignore[arg-type]
    assert [row["trial"] for row in found] == [0, 1, 2, 3]


class SimpleJournal:
    def __init__(self) -> None:
        self.events: list[Any] = []

    def hear(self, heard: Trials, kind: str, trial: int, **data: Any) -> None:
        event = Event(seq=len(self.events), time=0.0, kind=kind, trial=trial, data=data)
        self.events.append(event)
        heard.apply(event)


def test_the_table_is_kept_and_fits_80_columns(journal: Journal, tmp_path: Path) -> None:
    found = rows(journal, trials_of(journal))
    write(tmp_path / "ablation.csv", found)
    with open(tmp_path / "ablation.csv", newline="") as file:
        kept = list(csv.DictReader(file))
    assert list(kept[0]) == list(ablation.HEAD)
    for row, line in zip(found, kept, strict=True):
        for name in ablation.HEAD:
            wanted = row[name]
            assert line[name] == ("" if wanted is None else str(wanted))
    text = io.StringIO()
    long = {**found[1], "change": "activation_backbone some long value -> another long value"}
    show([*found, long], Console(file=text, width=80))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for words in ("0002", "diverged", "+0.2067", "one change at a time"):
        assert words in text.getvalue(), words


# --- from the command line


def test_a_run_is_ablated_from_the_command_line(
    tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    search("gene_expr", "--data", tiles, "--out", run, "--trials", 2, "--epochs", 2, "--folds", 2,
           "--groups", "none", "--image-size", 32, "--backbone", "test_resnet")  # fmt: skip
    assert not (run / "ablation.csv").exists()
    capsys.readouterr()
    search("--resume", run, "--ablate", "lr")
    output = capsys.readouterr().out
    assert "plan: 3 trials that change the best recipe one by one" in output
    assert "one change at a time" in output
    with open(run / "ablation.csv", newline="") as file:
        base, *found = list(csv.DictReader(file))
    events = read_events(run / "journal.jsonl")[0]
    asked = [e for e in events if e.kind == "ask"]
    (event,) = (e for e in events if e.kind == "ablate")
    assert [e.data["source"] for e in asked[2:]] == ["ablate"] * 3 and len(asked) == 5
    assert [e.data["params"] for e in asked[2:]] == [c["params"] for c in event.data["changes"]]
    best = next(e for e in asked if e.trial == event.data["base"])
    for e in asked[3:]:  # the recipe differs in its learning rate alone
        differing = {k for k, v in e.data["recipe"].items() if best.data["recipe"][k] != v}
        assert differing == {"lr"}
    again = asked[2].data["recipe"]
    assert {k for k, v in again.items() if best.data["recipe"][k] != v} == {"seed"}
    assert base["change"] == f"trial {best.trial} as it is"
    assert sorted(int(row["trial"]) for row in found) == [2, 3, 4]
    ends = {e.trial: e.data for e in events if e.kind == "end"}
    for row in found:
        here, there = (np.array(ends[t]["fold_scores"]) for t in (int(row["trial"]), best.trial))
        assert float(row["difference"]) == pytest.approx((here - there).mean())
    # Resumed once more, nothing is asked, and the table stays.
    search("--resume", run)
    assert len([e for e in read_events(run / "journal.jsonl")[0] if e.kind == "ask"]) == 5
    assert "one change at a time" in capsys.readouterr().out


def test_an_ablation_is_of_a_run_that_is_there() -> None:
    args = parser().parse_args(["gene_expr", "--ablate", "lr"])
    with pytest.raises(UserError, match="--ablate goes with --resume"):
        check_resume(args, ["--ablate"])
