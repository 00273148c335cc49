"""The screen of a run that is under way: on a terminal of any width, here and from elsewhere."""

import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from search import leaderboard, live, screen
from search.follow import Follower
from search.journal import Journal, read_events
from search.live import Guarded, LiveView, follow, view_of
from search.progress import TrialLines
from search.run_folder import RunFolder, write_json
from search.screen import Painter, Screen
from search.watch import Watch
from tests.runs import environment
from tests.watched import folder
from tests.workers import plan_of

CONTROL = re.compile(rb"\x1b\[[0-9;?]*[a-zA-Z]")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Under way: trials run, wait, and have ended."""
    return folder(tmp_path / "run", plan=plan_of(workers=3, trials=14), steps=100)


def watch_of(run: RunFolder) -> Watch:
    follower = Follower(run)
    follower.update()
    return follower.watch


def screen_of(run: RunFolder) -> Screen:
    return Painter(run).screen(watch_of(run), time.time())


def drawn(screen: Screen, width: int, height: int = 50) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=True, highlight=False)
    console.print(screen)
    return Text.from_ansi(out.getvalue()).plain.splitlines()


def bundle(run: RunFolder, score: float, members: int = 3) -> None:
    rows = [{"name": "ensemble, OOF", "score": 0.99},
            {"name": "ensemble, nested", "score": score, "standard_error": 0.01}]  # fmt: skip
    write_json(run.ensemble / "ensemble.json", {"scores": rows, "members": [{}] * members})


@pytest.mark.parametrize("width", [60, 80, 120])
def test_it_fits_the_width(run: RunFolder, width: int) -> None:
    lines = drawn(screen_of(run), width)
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("width", [80, 120])
def test_it_tells_how_far_the_run_is(run: RunFolder, width: int) -> None:
    bundle(run, 0.7123)
    watch = watch_of(run)
    counts, best = watch.counts(), watch.trials.best()
    assert counts["running"] and counts["waiting"] and counts["finished"] and best is not None
    text = "\n".join(drawn(screen_of(run), width))
    assert "of 14 begun" in text
    for state in ("running", "waiting", "finished"):
        assert f"{counts[state]} {state}" in text
    assert f"best so far     {best.score():.4f}  trial {best.number:04d}" in text
    assert "(colour_ridge 0.5000)" in text
    assert "ensemble so far 0.7123 ± 0.0100 nested, 3 members" in text
    assert "elapsed" in text and re.search(r"about \d+ s left", text)


def test_each_worker_has_a_line(run: RunFolder) -> None:
    watch = watch_of(run)
    lines = drawn(screen_of(run), 80)
    head = next(i for i, line in enumerate(lines) if "images/s" in line)
    workers = [line.split() for line in lines[head + 1 : head + 1 + len(watch.leases())]]
    assert len(workers) == 3
    for cells, lease in zip(workers, watch.leases(), strict=True):
        assert cells[:2] == [f"{lease.trial.number:04d}", lease.trial.backbone]
        assert f"{lease.fold}/3" in cells and f"{lease.epoch}/{lease.trial.epochs}" in cells


def test_the_best_five_are_shown_in_order(tmp_path: Path) -> None:
    run = folder(tmp_path / "late", plan=plan_of(workers=3, trials=14), steps=160)
    lines = drawn(screen_of(run), 80)
    head = next(i for i, line in enumerate(lines) if "score" in line and "state" in line)
    shown = [int(line.split()[0]) for line in lines[head + 1 :]]
    assert shown == [trial.number for trial in watch_of(run).best(5)] and len(shown) == 5


def test_a_short_terminal_shows_fewer_workers_and_says_so(run: RunFolder) -> None:
    few = screen_of(run)
    many = replace(few, leases=list(few.leases) * 10)
    lines = drawn(many, 80, height=24)
    assert len(lines) < 24 and "and 22 workers more" in lines


def test_clocks_go_on_between_two_looks(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = replace(screen_of(run), elapsed=10.0, left=50.0, silent=0.0, at=1000.0)
    for now, words in ((1000.0, "10 s elapsed, about 50 s left"),
                       (1020.0, "30 s elapsed, about 30 s left"),
                       (1100.0, "2 min elapsed, about 0 s left"),
                       (1300.0, "about 0 s left, last news 5 min ago")):  # fmt: skip
        monkeypatch.setattr(screen.time, "monotonic", lambda now=now: now)
        assert words in drawn(moment, 80)[1]
    assert "? left" in drawn(replace(moment, left=None), 80)[1]
    assert "at most 0 s left" in drawn(replace(moment, limit=True), 80)[1]


def test_a_run_that_has_just_begun_is_drawn(tmp_path: Path) -> None:
    lines = drawn(screen_of(folder(tmp_path / "run", steps=0)), 80)
    text = "\n".join(lines)
    assert "none is finished yet" in text and "none is built yet" in text and "? left" in text
    run = RunFolder(tmp_path / "run")
    run.journal.unlink()
    assert "0 of 12 begun" in "\n".join(drawn(screen_of(run), 80))


def test_the_newest_ensemble_is_told_and_a_half_written_one_is_not(run: RunFolder) -> None:
    painter, watch = Painter(run), watch_of(run)
    assert "none is built" in painter.screen(watch, 0.0).ensemble
    bundle(run, 0.5)
    assert "0.5000" in painter.screen(watch, 0.0).ensemble
    path = run.ensemble / "ensemble.json"
    os.utime(path, ns=(1, 1))
    path.write_text("{half")
    assert "0.5000" in painter.screen(watch, 0.0).ensemble
    bundle(run, 0.6, members=1)
    assert "0.6000 ± 0.0100 nested, 1 member" in painter.screen(watch, 0.0).ensemble


def test_names_from_outside_are_no_markup(run: RunFolder) -> None:
    watch = watch_of(run)
    for trial in watch.trials.all.values():
        trial.recipe["backbone"] = "[red]x[/red]"
    text = "\n".join(drawn(Painter(run).screen(watch, time.time()), 80))
    assert text.count("[red]x[/red]") >= 6


def test_a_file_gets_calm_lines_and_a_terminal_a_screen(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = watch_of(run)
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert isinstance(view_of(watch, run), TrialLines)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(view_of(watch, run), LiveView)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(view_of(watch, run), TrialLines)


def test_the_view_draws_at_most_once_a_moment(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, now = watch_of(run), 0.0
    drawings: list[float] = []
    out = Console(file=io.StringIO(), force_terminal=True, width=80)
    monkeypatch.setattr(live.time, "monotonic", lambda: now)
    view = LiveView(watch, run, out)
    event = read_events(run.journal)[0][-1]
    view.hear(event)  # not entered yet: nothing to draw on
    with view:
        paint = view._painter.screen

        def count(watch: Watch, moment: float) -> Screen:
            drawings.append(now)
            return paint(watch, moment)

        monkeypatch.setattr(view._painter, "screen", count)
        for now in (1.0, 1.2, 1.9, 2.1, 2.2, 4.0):  # noqa: B007
            view.hear(event)
    assert drawings == [1.0, 2.1, 4.0]


class Broken:
    """A view on a terminal that is gone."""

    def __enter__(self) -> None:
        raise OSError("gone")

    def __exit__(self, *error: object) -> None:
        raise OSError("still gone")

    def hear(self, event: object) -> None:
        raise BrokenPipeError


def test_a_view_that_fails_stops_nothing(run: RunFolder) -> None:
    view = Guarded(Broken())  # type: ignore[arg-type]
    with view:
        for event in read_events(run.journal)[0]:
            view.hear(event)
    with pytest.raises(ZeroDivisionError), Guarded(Broken()):  # type: ignore[arg-type]
        _ = 1 / 0


class Stuck(io.StringIO):
    """A terminal that takes no output for a while, as after Ctrl-S."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()
        self.free.set()

    def write(self, text: str) -> int:
        assert self.free.wait(30)
        return super().write(text)


def test_a_stuck_terminal_holds_nobody_up(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "EVERY", 0.01)
    out, watch = Stuck(), watch_of(run)
    event = read_events(run.journal)[0][-1]
    with LiveView(watch, run, Console(file=out, force_terminal=True, width=80)) as view:
        out.free.clear()
        time.sleep(0.1)  # the drawing thread hangs
        heard = threading.Thread(target=lambda: [view.hear(event) for _ in range(20)], daemon=True)
        heard.start()
        heard.join(10)
        hung = heard.is_alive()
        out.free.set()
    assert not hung


def grown(run: RunFolder, pieces: int) -> tuple[Callable[[float], None], bytes]:
    """The journal is cut to a third, and a `sleep` writes the rest, `pieces` times a part of it,
    torn wherever it may be."""
    raw = run.journal.read_bytes()
    cuts = [len(raw) * k // (3 * pieces) for k in range(pieces, 3 * pieces + 1)]
    run.journal.write_bytes(raw[: cuts[0]])
    left = iter(cuts[1:])

    def sleep(seconds: float) -> None:
        run.journal.write_bytes(raw[: next(left)])

    return sleep, raw


def test_a_run_is_followed_to_its_end(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    sleep, raw = grown(run, 7)
    out = io.StringIO()
    follow(run, Console(file=out, width=80, force_terminal=True, highlight=False), sleep)
    assert run.journal.read_bytes() == raw
    end = Text.from_ansi(out.getvalue()).plain
    assert "12 of 12 begun" in end and "about 0 s left" in end and "have ended" in end
    assert "\x1b[?25h" in out.getvalue(), "the cursor is back"


def test_without_a_terminal_what_ends_is_told_line_by_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = folder(tmp_path / "run")
    sleep, _ = grown(run, 5)
    before = watch_of(run)
    ended = {event.trial for event in read_events(run.journal)[0] if event.kind == "end"}
    follow(run, Console(file=sys.stdout, width=80), sleep)
    first, *lines = capsys.readouterr().out.splitlines()
    assert re.match(r"\d\d:\d\d:\d\d \d+/12 done", first)
    told = [int(line.split()[2]) for line in lines if " trial " in line]
    assert set(range(12)) - ended - before.waiting <= set(told), (
        "each is told when it waits or ends"
    )
    assert not set(told) & ended, "what had ended before is not told again"
    assert max(map(len, [first, *lines[:-1]])) <= 80


def test_ctrl_c_ends_following(run: RunFolder) -> None:
    def stop(seconds: float) -> None:
        raise KeyboardInterrupt

    out = io.StringIO()
    follow(run, Console(file=out, width=80, force_terminal=True), stop)
    assert "have ended" not in out.getvalue() and "\x1b[?25h" in out.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_from_another_terminal(tmp_path: Path, width: int) -> None:
    """The command itself in a pseudo-terminal, while somebody else writes the journal."""
    run = folder(tmp_path / "run")
    whole = run.journal.read_bytes()
    run.journal.write_bytes(whole[: len(whole) // 2])
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, width, 0, 0))
    command = [sys.executable, "-m", "search.leaderboard", str(run.root), "--follow"]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path,
        env=environment() | {"TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(theirs)
    output, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline:
        if b"begun" in output and run.journal.stat().st_size < len(whole):
            run.journal.write_bytes(whole)
        if select.select([ours], [], [], 0.2)[0]:
            try:
                output += os.read(ours, 1 << 16)
            except OSError:  # the other side is closed
                break
    os.close(ours)
    assert process.wait(timeout=30) == 0, output
    assert b"Traceback" not in output
    lines = CONTROL.sub(b"", output).replace(b"\r", b"\n").decode().splitlines()
    assert max(map(len, (line.rstrip() for line in lines if "/" not in line))) <= width
    assert any("12 of 12 begun" in line for line in lines)


def test_a_folder_without_a_journal_yet_is_followed(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", steps=0)
    raw = run.journal.read_bytes()
    run.journal.unlink()
    waits = iter([b"", raw[:10], raw])

    def sleep(seconds: float) -> None:
        try:
            run.journal.write_bytes(next(waits))
        except StopIteration:
            raise KeyboardInterrupt from None

    out = io.StringIO()
    follow(run, Console(file=out, width=80, force_terminal=True, highlight=False), sleep)
    assert "0 of 12 begun" in Text.from_ansi(out.getvalue()).plain


def test_the_command_follows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder(tmp_path / "run")
    assert leaderboard.main([str(run.root), "--follow"]) == 0
    assert "12/12 done" in capsys.readouterr().out


def test_a_journal_in_use_is_only_read(run: RunFolder) -> None:
    before = sorted(path.name for path in run.root.iterdir())
    journal = Journal(run.journal)
    screen_of(run)
    journal.append("session")
    journal.close()
    assert sorted(path.name for path in run.root.iterdir()) == before
