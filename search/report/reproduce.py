"""Exact commands: to run it again, to go on, to predict; and what it ran with."""

import shlex
from collections.abc import Iterator

from search.report import forms
from search.report.facts import Facts
from search.report.markup import Html, details, el, facts_list, join


def body(facts: Facts) -> Html:
    return join([
        el("dl", [el("div", el("dt", what), el("dd", el("pre", el("code", line))))
                  for what, line in commands(facts)], class_="commands"),
        el("h3", "What it ran with"),
        facts_list(_with(facts)),
        details("Why it was planned so",
                el("ul", [el("li", reason) for reason in facts.plan.get("reasons", ())])),
    ])  # fmt: skip


def commands(facts: Facts) -> Iterator[tuple[str, str]]:
    run, asked = str(facts.run.root), facts.about.get("command")
    if commit := str(facts.about.get("commit") or ""):
        whole = commit.removesuffix("-dirty")
        changed = "" if whole == commit else ", but for changes that were not committed"
        yield f"the same code{changed}", f"git checkout {shlex.quote(whole)}"
    if asked:
        yield "the run again", shlex.join(["python", *map(str, asked[1:])])
    yield "go on, or finish what is open", forms.command("search.run", "--resume", run)
    yield "16 more recipes", forms.command("search.run", "--resume", run, "--extend", "16")
    yield "the leaderboard", forms.command("search.leaderboard", run)
    if facts.finished:
        yield "compare ways to combine", forms.command("ensemble.build", run)
    if facts.ensemble:
        bundle = str(facts.run.ensemble)
        yield "predict new rows", forms.command("ensemble.predict", bundle, "--data", "DIR")
    yield "this page", forms.command("search.report", run)


def _with(facts: Facts) -> Iterator[tuple[str, object]]:
    about = facts.about
    yield "task", f"{about.get('task')} ({facts.task_type})"
    yield "data", about.get("data", "")
    yield "seed", about.get("seed", "")
    if about.get("commit"):
        yield "commit", about["commit"]
    if about.get("task_digest"):
        yield "digest of the task's file", str(about["task_digest"])[:16]
    if about.get("weights"):
        yield "weights", about["weights"]["reason"]
    yield from about.get("versions", {}).items()
    if resources := about.get("resources"):
        yield "cores, GPUs", f"{resources['cpus']}, {resources['gpus']}"
        yield "memory", forms.size(resources["memory_bytes"])
