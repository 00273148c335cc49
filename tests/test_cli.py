"""The command lines: their flags are a contract, and bad input ends in one clear message."""

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from spaces.errors import UserError

ROOT = Path(__file__).resolve().parent.parent

# Positionals in capitals.
OWN_TASK = "--targets --task-type --metric --image-columns --id-column"  # of the task csv
FLAGS = {
    "search.run": (
        "TASK --data --out --trials --hours --epochs --folds --groups --image-size --backbone "
        "--gpus-per-trial --cpus-per-trial --address --weights --cache --seed --resume --dry-run "
        "--compile --skip-bad --extend --force --keep-gb --warm-start --group-duplicates "
        "--crop-borders --mask-captions --init-from --ablate --refit --quiet --tensorboard "
        f"--mlflow {OWN_TASK}"
    ),
    "search.check": (
        f"TASK --data --groups --skip-bad --cache --group-duplicates --folds --pictures {OWN_TASK}"
    ),
    "search.leaderboard": (
        "RUN --top --sort --filter --columns --json --csv --trial --compare --note --follow"
    ),
    "search.export": "RUN --tensorboard --mlflow --optuna",
    "search.report": "RUN",
    "ensemble.build": (
        "RUN --method --max-members --max-per-family --max-mb --max-ms --sorted-start --bag --add "
        "--out --oof --target --folds --metric --task-type --id-column --test"
    ),
    "ensemble.predict": "BUNDLE --data --out --tta --batch-size --explain",
}


def parser_of(module: str) -> argparse.ArgumentParser:
    return importlib.import_module(module).parser()


def names_of(parser: argparse.ArgumentParser) -> list[str]:
    """Every positional by its name in the usage, every option by each of its spellings."""
    found = []
    for action in parser._actions:
        found += action.option_strings or [str(action.metavar or action.dest).upper()]
    return found


def run(module: str, *args: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, args)],
        cwd=cwd, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def refused(done: subprocess.CompletedProcess[str], *words: str, code: int = 1) -> None:
    """The command ended with `code` and a message with all `words`, and without a traceback."""
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert re.search(r"^(error|\d+ faults|usage):", done.stderr, re.MULTILINE), done.stderr
    for word in words:
        assert word in done.stderr, f"{word!r} is not in: {done.stderr}"


@pytest.mark.parametrize("module", FLAGS)
def test_the_flags_are_held(module: str) -> None:
    assert sorted(names_of(parser_of(module))) == sorted([*FLAGS[module].split(), "-h", "--help"])


@pytest.mark.parametrize("module", FLAGS)
def test_every_flag_is_explained(module: str) -> None:
    silent = [action.dest for action in parser_of(module)._actions if not action.help]
    assert not silent


@pytest.mark.parametrize("module", FLAGS)
def test_help_names_the_command_as_it_is_typed(module: str) -> None:
    assert parser_of(module).format_usage().startswith(f"usage: python -m {module} ")


@pytest.mark.parametrize("module", FLAGS)
def test_an_unknown_flag_is_a_fault_of_syntax(module: str, tmp_path: Path) -> None:
    needed = ["--data", "DIR"] if module == "ensemble.predict" else []
    refused(run(module, "X", *needed, "--no-such-flag", cwd=tmp_path), "--no-such-flag", code=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", ["search.run", "search.check"])
def test_an_unknown_task_lists_the_near_names(module: str, tmp_path: Path) -> None:
    refused(run(module, "gene_exp", cwd=tmp_path), "gene_exp", "near names", "gene_expr")
    assert not list(tmp_path.iterdir()), "something was half written"


@pytest.mark.parametrize("module", ["search.run", "search.check"])
def test_a_data_folder_that_is_none_is_refused(module: str, tmp_path: Path) -> None:
    refused(run(module, "gene_expr", "--data", "no/such/folder", cwd=tmp_path), "no/such/folder")
    assert not list(tmp_path.iterdir()), "something was half written"


def test_search_needs_a_task_or_a_run_to_resume(tmp_path: Path) -> None:
    done = run("search.run", cwd=tmp_path)
    assert done.returncode in (1, 2) and "TASK" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--image-size", "0"), ("--trials", "0"), ("--hours", "-1"), ("--hours", "nan"),
        ("--epochs", "0"), ("--folds", "1"), ("--cpus-per-trial", "0"),
    ],
)  # fmt: skip
def test_an_impossible_value_is_the_users_fault(
    flag: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{flag} is {value}"):
        importlib.import_module("search.run").main(["gene_expr", flag, value])
    assert not list(tmp_path.iterdir()), "something was half written"


def test_a_share_of_a_gpu_is_a_number_or_auto(capsys: pytest.CaptureFixture[str]) -> None:
    parser = parser_of("search.run")
    read = [parser.parse_args(["t", "--gpus-per-trial", v]).gpus_per_trial for v in ("auto", ".5")]
    assert read == ["auto", 0.5]
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["t", "--gpus-per-trial", "many"])
    assert caught.value.code == 2
    assert "'many' is neither a number nor auto" in capsys.readouterr().err


def test_all_impossible_values_are_told_at_once_and_end_in_1(tmp_path: Path) -> None:
    done = run("search.run", "gene_expr", "--image-size", "0", "--trials", "0", cwd=tmp_path)
    refused(done, "2 faults", "--image-size is 0", "--trials is 0")


def test_an_unknown_backbone_lists_the_near_names(tmp_path: Path) -> None:
    done = run("search.run", "gene_expr", "--backbone", "resnet18x", cwd=tmp_path)
    refused(done, "resnet18x", "resnet18")
    assert not list(tmp_path.iterdir()), "something was half written"


@pytest.mark.parametrize(
    "module", ["search.leaderboard", "search.report", "search.export", "ensemble.build"]
)
def test_a_folder_that_is_no_run_is_refused(module: str, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    wanted = ["--optuna", tmp_path / "study.db"] if module == "search.export" else []
    refused(run(module, folder, *wanted, cwd=tmp_path), str(folder), "is not a run")
    refused(run(module, "absent", *wanted, cwd=tmp_path), "absent", "is not a folder")
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("args", "fault"),
    [
        (["gene_expr", "--resume", "RUN"],
         "give either a TASK or --resume RUN; `--help` shows both"),
        (["--resume", "RUN", "--data", "d", "--epochs", "3", "--seed", "0"],
         "--resume takes the run's own settings; leave out --data, --epochs, --seed"),
        (["--resume", "RUN", "--extend", "2", "--dry-run"],
         "--resume takes the run's own settings; leave out --dry-run"),
        (["--resume", "RUN", "--extend", "0"], "--extend is 0; it must be greater than 0"),
        (["gene_expr", "--extend", "2"], "--extend goes with --resume RUN"),
        (["gene_expr", "--force"], "--force goes with --resume RUN"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_resume_is_refused(args: list[str], fault: str) -> None:
    with pytest.raises(UserError) as caught:
        importlib.import_module("search.run").main(args)
    assert caught.value.faults == (fault,)


def test_resuming_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    refused(run("search.run", "--resume", tmp_path, cwd=tmp_path), str(tmp_path), "is not a run")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    refused(run("ensemble.predict", tmp_path, "--data", tmp_path, cwd=tmp_path), str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("asked", [("--follow",), ("--note", "1", "good")])
def test_a_copy_at_a_url_is_neither_followed_nor_written_on(
    asked: tuple[str, ...], tmp_path: Path
) -> None:
    url = "s3://bucket/run"
    refused(run("search.leaderboard", url, *asked, cwd=tmp_path), asked[0], url, "give the folder")


def test_a_number_of_views_that_is_not_offered_is_refused(tmp_path: Path) -> None:
    done = run("ensemble.predict", tmp_path, "--data", tmp_path, "--tta", "3", cwd=tmp_path)
    refused(done, "--tta is 3")


def test_a_run_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"format": 999}))
    words = ("written by a newer version (format 999; this version reads 2); update rungfold",)
    for module in ("search.leaderboard", "search.report", "ensemble.build"):
        refused(run(module, tmp_path, cwd=tmp_path), *words)
    refused(run("search.run", "--resume", tmp_path, cwd=tmp_path), *words)
