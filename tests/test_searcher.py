"""The sampler: first recipes in order, then a mix; the same history gives the same question."""

from pathlib import Path
from typing import Any

import pytest

from search.journal import Journal
from search.searcher import OptunaSampler
from spaces.registry import load_task
from spaces.task import Means

TASK = load_task("gene_expr")
MEANS = Means(
    gpu=False, pretrained=False, image_sizes=(64,), epochs=10, train_rows=600,
    backbones=("test_resnet", "test_efficientnet", "lcnet_050"),
)  # fmt: skip
SPACE = TASK.space(MEANS)


def sampler_on(journal: Journal, seed: int = 0) -> OptunaSampler:
    sampler = OptunaSampler(SPACE, seed, MEANS.epochs)
    journal.listen(sampler.apply)
    return sampler


def play(journal: Journal, sampler: OptunaSampler, start: int, stop: int) -> list[dict[str, Any]]:
    """Ask and end trials `start` to `stop`; every third is pruned, every fifth has failed."""
    asked = []
    for number in range(start, stop):
        params, recipe, source = sampler.ask(number, MEANS.backbones)
        journal.append("ask", number, params=params, recipe=recipe.to_dict(), source=source)
        value = 0.5 - abs(recipe.lr - 0.01)
        verdict = {"rung": "0+1", "go_on": number % 3 > 0, "value": value, "cut": None}
        journal.append("decision", number, 1, **verdict)
        if number % 3 == 0:
            journal.append("end", number, 1, state="pruned", reason="cut")
        elif number % 5 == 0:
            journal.append("end", number, 1, state="failed", reason="bug")
        else:
            journal.append("end", number, 1, state="finished", reason="", score=value)
        asked.append({"params": params, "source": source})
    return asked


def test_first_recipes_come_first_and_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    asked = play(journal, sampler_on(journal), 0, len(SPACE.first))
    assert [a["source"] for a in asked] == ["first"] * len(SPACE.first)
    assert [a["params"] for a in asked] == [SPACE.fixed(values)[1] for values in SPACE.first]


def test_all_sources_take_part_and_stay_in_the_space(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    asked = play(journal, sampler_on(journal), 0, 60)
    assert {a["source"] for a in asked} == {"first", "random", "neighbour", "sampler"}
    assert all(SPACE.contains(a["params"]) for a in asked)


def test_seeds_give_different_searches(tmp_path: Path) -> None:
    one, two = Journal(tmp_path / "1"), Journal(tmp_path / "2")
    assert play(one, sampler_on(one, 1), 0, 20) != play(two, sampler_on(two, 2), 0, 20)


@pytest.mark.parametrize("cut", [1, 7, 12, 19])
def test_rebuilt_from_the_journal_it_asks_as_if_it_had_never_died(tmp_path: Path, cut: int) -> None:
    whole = Journal(tmp_path / "whole")
    expected = play(whole, sampler_on(whole), 0, 24)
    broken = Journal(tmp_path / "broken")
    play(broken, sampler_on(broken), 0, cut)
    broken.close()
    again = Journal(tmp_path / "broken")
    assert play(again, sampler_on(again), cut, 24) == expected[cut:]


def test_only_affordable_backbones_are_asked_for(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    sampler = sampler_on(journal)
    play(journal, sampler, 0, 12)
    for number in range(12, 40):
        params, recipe, source = sampler.ask(number, ("lcnet_050",))
        assert params["backbone"] == recipe.backbone == "lcnet_050"
        journal.append("ask", number, params=params, recipe=recipe.to_dict(), source=source)
