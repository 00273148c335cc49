"""The sampler: first recipes in order, then a mix; the same history gives the same question."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution

from search.journal import Journal
from search.policy.priors import PriorObservation
from search.policy.rungs import make_rungs
from search.sampler import COPY, SEEDS, Observation, Sampler, _share
from spaces.means import Means
from spaces.registry import load_task

TASK = load_task("gene_expr")
MEANS = Means(
    gpu=False, pretrained=False, image_sizes=(64,), epochs=10, train_rows=600,
    backbones=("test_resnet", "test_efficientnet", "lcnet_050"),
)  # fmt: skip
SPACE = TASK.space(MEANS)


FIRST = [SPACE.fixed(values)[1] for values in SPACE.first]


def sampler_on(
    journal: Journal,
    seed: int = 0,
    first: Sequence[dict[str, Any]] = FIRST,
    priors: Sequence[PriorObservation] = (),
) -> Sampler:
    sampler = Sampler(
        SPACE, seed, backbones=MEANS.backbones, rungs=make_rungs(5, MEANS.epochs), folds=5,
        epochs=MEANS.epochs, first=first, priors=priors,
    )  # fmt: skip
    journal.listen(sampler.apply)
    return sampler


def play(
    journal: Journal, sampler: Sampler, start: int, stop: int, late: int = 1000
) -> list[dict[str, Any]]:
    """Ask and end trials `start` to `stop`; every third is pruned, every fifth has failed. The
    nearer a learning rate is to .01, the better."""
    asked = []
    for number in range(start, stop):
        params, recipe, source = sampler.ask(number, MEANS.backbones, number >= late)
        journal.append("ask", number, params=params, recipe=recipe.to_dict(), source=source)
        value = 0.5 - abs(math.log10(recipe.lr) + 2)
        journal.append("rung", number, rung="0+2", value=value, noise=0.0)
        if number % 3 == 0:
            journal.append("end", number, 1, state="pruned", reason="cut")
        elif number % 5 == 0:
            journal.append("end", number, 1, state="failed", reason="bug")
        else:
            journal.append("rung", number, rung="1+0", value=value, noise=0.0)
            journal.append("end", number, 1, state="finished", reason="", score=value)
        asked.append({"params": params, "source": source, "seed": recipe.seed})
    return asked


def test_first_recipes_come_first_and_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    asked = play(journal, sampler_on(journal), 0, len(FIRST))
    assert [a["source"] for a in asked] == ["first"] * len(FIRST)
    assert [a["params"] for a in asked] == FIRST


def test_all_sources_take_part_and_stay_in_the_space(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    asked = play(journal, sampler_on(journal), 0, 60, late=40)
    assert {a["source"] for a in asked} == {"first", "random", "neighbour", "tpe", "seed"}
    assert all(SPACE.contains(a["params"]) for a in asked)


def test_only_late_in_the_search_is_a_recipe_tried_with_other_seeds(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    asked = play(journal, sampler_on(journal), 0, 90, late=30)
    assert not any(a["seed"] for a in asked[:30])
    again = [a for a in asked if a["source"] == "seed"]
    assert again and all(a["seed"] for a in again)
    for a in again:
        same = [b["seed"] for b in asked if b["params"] == a["params"]]
        assert len(same) == len(set(same)) <= SEEDS


def test_what_is_good_is_looked_for_nearby(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    asked = play(journal, sampler_on(journal), 0, 80)

    def distance(sources: tuple[str, ...]) -> float:
        rates = [a["params"]["lr@cnn"] for a in asked[20:] if a["source"] in sources]
        return sum(abs(math.log10(rate) + 2) for rate in rates) / len(rates)

    assert distance(("neighbour", "tpe")) < 0.75 * distance(("random",))


def test_no_recipe_is_tried_twice(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    asked = [a["params"] for a in play(journal, sampler_on(journal), 0, 60)]
    assert all(a != b for i, a in enumerate(asked) for b in asked[:i])


def test_what_is_kept_for_quick_looks_is_what_a_look_at_all_trials_finds(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    sampler = sampler_on(journal)
    play(journal, sampler, 0, 60)
    for number in range(0, 60, 7):
        journal.append("end", number, 1, state="diverged", reason="exploded")

    for enough in (3, 8, 1000):
        level = max((r for r, count in sampler._at.items() if count >= enough), default=None)
        there = [
            (-o.values[level], number)
            for number, o in sampler._seen.items()
            if level in o.values and not o.diverged
        ]
        expected = [sampler._seen[number] for _, number in sorted(there)]
        assert sampler._best(enough, 10) == expected[:10]

    def near(params: dict[str, Any], seen: Observation) -> bool:
        """As the sampler has it."""
        return params.keys() == seen.params.keys() and all(
            abs(_share(drawn_from, params[name]) - _share(drawn_from, seen.params[name])) < COPY
            if isinstance(drawn_from, FloatDistribution)
            else params[name] == seen.params[name]
            for name, drawn_from in seen.distributions.items()
        )

    asked = [dict(o.params) for o in sampler._seen.values()]
    moved = [p | {"lr@cnn": p["lr@cnn"] * (1 + k / 100)} for p in asked if "lr@cnn" in p
             for k in range(12)]  # fmt: skip
    other = [p | {"backbone": "resnet18"} for p in asked]
    found = [sampler._near_copy(params) for params in asked + moved + other]
    assert found == [
        any(near(params, seen) for seen in sampler._seen.values())
        for params in asked + moved + other
    ]
    assert set(found[len(asked) : len(asked) + len(moved)]) == {True, False}


def test_earlier_runs_guide_the_first_draws(tmp_path: Path) -> None:
    def rates(priors: list[PriorObservation], name: str) -> list[float]:
        journal = Journal(tmp_path / name)
        sampler = sampler_on(journal, first=(), priors=priors)
        asked = [sampler.ask(number, MEANS.backbones, False) for number in range(40)]
        return [params["lr@cnn"] for params, _, source in asked if source == "tpe"]

    base = SPACE.fixed({})[1]
    low, high = 1e-3, 4e-2  # the space's
    priors = [
        PriorObservation(
            params={**base, "lr@cnn": low * (high / low) ** (i / 29)}, rank=1 - (i + 0.5) / 30
        )
        for i in range(30)
    ]  # the lower the better
    guided = rates(priors, "with")
    assert len(guided) > 10 and not rates([], "without")
    assert sum(rate < 6e-3 for rate in guided) > 0.75 * len(guided)


def test_seeds_give_different_searches(tmp_path: Path) -> None:
    one, two = Journal(tmp_path / "1"), Journal(tmp_path / "2")
    assert play(one, sampler_on(one, 1), 0, 20) != play(two, sampler_on(two, 2), 0, 20)


@pytest.mark.parametrize("cut", [1, 7, 12, 19])
def test_rebuilt_from_the_journal_it_asks_as_if_it_had_never_died(tmp_path: Path, cut: int) -> None:
    whole = Journal(tmp_path / "whole")
    expected = play(whole, sampler_on(whole), 0, 24, late=15)
    broken = Journal(tmp_path / "broken")
    play(broken, sampler_on(broken), 0, cut, late=15)
    broken.close()
    again = Journal(tmp_path / "broken")
    assert play(again, sampler_on(again), cut, 24, late=15) == expected[cut:]


def test_first_recipes_that_take_too_long_now_are_asked_later_if_there_is_time(
    tmp_path: Path,
) -> None:
    journal = Journal(tmp_path / "j")
    sampler = sampler_on(journal)
    few = tuple(b for b in MEANS.backbones if b != FIRST[0]["backbone"])
    asked = []
    for number in range(len(FIRST)):
        params, recipe, source = sampler.ask(number, few if number < 2 else MEANS.backbones, False)
        journal.append("ask", number, params=params, recipe=recipe.to_dict(), source=source)
        asked.append(params)
    assert asked[0] != FIRST[0] == asked[2]
    assert all(asked.count(params) == 1 for params in asked)


def test_only_affordable_backbones_are_asked_for(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    sampler = sampler_on(journal)
    play(journal, sampler, 0, 12)
    for number in range(12, 40):
        params, recipe, source = sampler.ask(number, ("lcnet_050",), False)
        assert params["backbone"] == recipe.backbone == "lcnet_050"
        journal.append("ask", number, params=params, recipe=recipe.to_dict(), source=source)
