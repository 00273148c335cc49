"""The run in words: the honest score first, what leads, whether to believe it, what to try next."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from search.journal import seconds_used
from search.memory_watch import peak_line
from search.plan import Plan, extended
from search.report import forms
from search.report.facts import Facts
from search.report.markup import Html, el, facts_list, join, paragraphs, text
from search.report.recipes import crowded
from search.trials import DIVERGED, FAILED, RUNNING, TOO_BIG
from spaces.errors import UserError

NESTED, SINGLE = "ensemble, nested", "best single, nested"
GAIN, GAP, OPTIMISTIC = "ensemble minus best single, nested", "OOF minus nested", "ensemble, OOF"
_FEW_FOLDS = 3


def scores_of(facts: Facts) -> dict[str, Mapping[str, Any]]:
    """The ensemble's scores by their names."""
    return {str(row["name"]): row for row in facts.ensemble.get("scores", ())}


def body(facts: Facts) -> Html:
    return join([
        _headline(facts),
        paragraphs(_sentences(facts)),
        _tiles(facts),
        el("h3", "Whether to believe the score"),
        el("ul", [_remark(good, words) for good, words in remarks(facts)], class_="remarks"),
        el("h3", "What to try next"),
        el("ul", [el("li", step) for step in next_steps(facts)]),
    ])  # fmt: skip


def _headline(facts: Facts) -> Html:
    scores = scores_of(facts)
    if NESTED in scores:
        return _hero(scores[NESTED], "Honest score of the ensemble",
                     "nested: members, weights and thresholds were chosen without the fold that "
                     "scores them")  # fmt: skip
    if facts.finished:
        best = facts.best
        return _hero({"score": best.score()}, f"Out-of-fold score of {facts.name(best)}",
                     "mean over folds, by models that did not see the rows" + (
                     "; a little optimistic, since it is the best of "
                     f"{len(facts.finished)}" if len(facts.finished) > 1 else ""))  # fmt: skip
    return el("p", el("strong", "There is no score yet. "), facts.why_unfinished, class_="hero")


def _hero(row: Mapping[str, Any], what: str, kind: str) -> Html:
    between = row.get("interval")
    return el(
        "div",
        el("p", what, class_="what"),
        el("p", el("span", forms.score(row["score"]), class_="value"),
           f" ± {forms.score(row['standard_error'])}" if row.get("standard_error") else ""),
        el("p", kind),
        el("p", f"{100 * between['level']:.0f} % interval {forms.score(between['low'])} to "
           f"{forms.score(between['high'])} (bootstrap of {between['bootstrap_of']})")
        if between else None,
        class_="hero",
    )  # fmt: skip


def _sentences(facts: Facts) -> Iterator[str]:
    scores = scores_of(facts)
    yield f"The score is {facts.score_name}, the mean over folds; higher is better."
    if NESTED in scores:
        yield from _of_ensemble(facts, scores)
    if facts.finished:
        best = facts.best
        line = f"Of single models {facts.name(best)}, leads with {forms.score(best.score())}"
        if len(facts.finished) > 1:
            second = facts.finished[1]
            line += f", before {facts.name(second)}, with {forms.score(second.score())}"
        yield f"{line}."
    rows = facts.frame[facts.frame["kind"] == "baseline"].to_dict("records")
    if rows:
        told = " and ".join(f"{row['name']} {forms.score(row['score'])}" for row in rows)
        yield f"Trivial baselines, which no model may lie below: {told}."


def _of_ensemble(facts: Facts, scores: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    members = facts.ensemble["members"]
    who = (
        f"one model ({forms.member(members[0]['name'])})"
        if len(members) == 1
        else f"{len(members)} models ({facts.ensemble['what']})"
    )
    line = f"The ensemble is {who}. "
    if SINGLE in scores and GAIN in scores:
        gain = scores[GAIN]
        between = gain.get("interval")
        clear = between is not None and (between["low"] > 0 or between["high"] < 0)
        line += (
            f"Choosing just the best single model, as honestly, scores "
            f"{forms.score(scores[SINGLE]['score'])}: the difference of "
            f"{forms.signed(gain['score'])} is "
            f"{'clear' if clear else 'within what chance explains'}."
        )
    yield line
    if GAP in scores and OPTIMISTIC in scores:
        yield (
            "On the rows that chose it, the ensemble has "
            f"{forms.score(scores[OPTIMISTIC]['score'])}: {abs(scores[GAP]['score']):.4f} "
            f"{'too much' if scores[GAP]['score'] >= 0 else 'less'}. Quote the nested score."
        )


def _tiles(facts: Facts) -> Html:
    states = Counter(trial.state for trial in facts.trials.all.values())
    rows, targets = facts.data.get("rows", {}), facts.about.get("target_names", ())
    pairs: list[tuple[str, object]] = [
        ("trials", _asked(facts)),
        *((state, count) for state, count in states.items()),
        ("time", forms.seconds(seconds_used(facts.events))),
        ("folds", len(facts.fold_order) or None),
        ("train rows", forms.whole(rows["train"]) if rows else None),
        ("test rows", forms.whole(rows["test"]) if rows else None),
        ("targets", forms.whole(len(targets)) if targets else None),
    ]
    resources = facts.about.get("resources", {})
    if resources:
        gpus = f", {forms.plural(resources['gpus'], 'GPU')}" if resources["gpus"] else ""
        pairs.append(("machine", forms.plural(resources["cpus"], "core") + gpus))
    memory = peak_line(facts.data)
    return join([
        facts_list((name, value) for name, value in pairs if value is not None),
        el("p", memory, class_="note") if memory else None,
    ])  # fmt: skip


def planned(facts: Facts) -> int | None:
    """Trials that were asked for in all; None: as many as fit into the hours."""
    try:
        return extended(Plan.from_dict(dict(facts.plan)), facts.events).trials
    except UserError:  # another version's plan
        return None


def _asked(facts: Facts) -> str:
    count, asked = len(facts.trials.all), planned(facts)
    return str(count) if asked is None else f"{count} of {asked}"


def _remark(good: bool, words: str) -> Html:
    sign = el("span", "+" if good else "!", class_="good" if good else "care", aria_hidden="true")
    return el("li", sign, el("span", "speaks for it: " if good else "take care: ", class_="hidden"),
              words)  # fmt: skip


def remarks(facts: Facts) -> Iterator[tuple[bool, str]]:
    """What speaks for the score (True), and what against it."""
    scores, folds = scores_of(facts), len(facts.fold_order)
    if NESTED in scores:
        yield True, "the score is nested: no choice saw the rows that it is measured on"
        gap, error = scores[GAP]["score"], scores[NESTED].get("standard_error", 0.0)
        if gap > max(error, 1e-4):
            told = f"selection flatters by {gap:.4f}, more than the standard error of {error:.4f}"
            yield False, f"{told}: more rows or fewer candidates would help"
    elif len(facts.finished) > 1:
        yield False, f"it is the best of {len(facts.finished)} on the same rows, so it flatters"
    if 0 < folds <= _FEW_FOLDS:
        yield False, f"{folds} folds give a rough standard error"
    if facts.data:
        yield _of_groups(facts)
        yield from _of_data(facts)


def _of_groups(facts: Facts) -> tuple[bool, str]:
    asked, groups = facts.about.get("groups_asked", "auto"), facts.data.get("groups") or {}
    number = groups if isinstance(groups, int) else len(groups)
    if asked not in ("auto", "none"):
        return True, f"rows of one group stay in one fold ({asked}: {number} groups)"
    if facts.data.get("clusters"):
        found = f"rows of groups that were found in the data stay in one fold ({number} groups)"
        return True, f"{found}; patients or slides can be named with --groups"
    lone = "nobody has said which rows belong together: where several show one patient or slide,"
    return False, f"{lone} the score is too good (--groups names them)"


def _of_data(facts: Facts) -> Iterator[tuple[bool, str]]:
    data = facts.data
    counts = data.get("near_duplicates", {}).get("counts", {})
    if counts.get("train_and_test"):
        pairs = forms.plural(counts["train_and_test"], "pair")
        yield False, f"{pairs} of a train and a test row are near duplicates"
    if counts.get("conflicting"):
        yield False, f"{counts['conflicting']} pairs of near duplicates have different labels"
    for apart in data.get("told_apart", {}).values():
        yield _alike(apart["auc"]), str(apart["meaning"])
    if data.get("quarantined"):
        left_out = forms.plural(len(data["quarantined"]), "row")
        yield False, f"{left_out} with unreadable images are left out"


def _alike(auc: float) -> bool:
    from search.data.adversarial import UNLIKE

    return math.isnan(auc) or auc < UNLIKE


def next_steps(facts: Facts) -> Iterator[Html]:
    """Commands and hints that follow from what is there."""
    run, trials = str(facts.run.root), facts.trials.all.values()
    resume = forms.command("search.run", "--resume", run)
    if unfinished(facts):
        yield join(["The run is not finished; go on: ", el("code", resume)])
    else:
        yield join(["More recipes of the same search: ", el("code", f"{resume} --extend 16")])
    states = Counter(trial.state for trial in trials if trial.state in (FAILED, TOO_BIG, DIVERGED))
    if states:
        told = ", ".join(f"{count} {state}" for state, count in states.items())
        yield text(f"See why trials went wrong ({told}): the reasons stand in the leaderboard.")
    for name, side, edge in crowded(facts.finished, list(trials)):
        yield text(
            f"The best recipes crowd at the {side} end of what was tried of {name} "
            f"({forms.value(edge)}): beyond it may be better ones."
        )
    if facts.finished:
        yield join(["What each choice of the best recipe brings, one at a time: ",
                    el("code", f"{resume} --ablate")])  # fmt: skip
    if facts.ensemble and "comparison" not in facts.ensemble:
        build = forms.command("ensemble.build", run)
        yield join(["Other ways to combine the members, by nested score: ", el("code", build)])


def unfinished(facts: Facts) -> bool:
    """Whether trials are open, or fewer were started than planned."""
    trials = facts.trials.all.values()
    return (
        not trials
        or len(trials) < (planned(facts) or 0)
        or any(trial.state == RUNNING for trial in trials)
    )
