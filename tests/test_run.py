"""The main job as a person runs it: one command, then everything is there."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from search.journal import read_events
from tests.runs import GENES, call, learnable_folder, start

SMALL = ("--epochs", 3, "--folds", 2, "--groups", "none", "--image-size", 32, "--backbone",
         "test_resnet", "test_efficientnet")  # fmt: skip
KINDS = ("ask", "decision", "fold", "end")  # what decides; times and attempts may differ


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learnable_folder(tmp_path_factory.mktemp("data") / "open")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[Path, str]:
    """A finished run with one worker, and what it printed."""
    folder = tmp_path_factory.mktemp("whole")
    output = call("gene_expr", "--data", data, "--out", "run", "--trials", 6, *SMALL,
                  cwd=folder)  # fmt: skip
    return folder / "run", output


def rows_of(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


TIMES = ("seconds", "predict_ms")


def decisions(run: Path) -> list[str]:
    kept = [e for e in read_events(run / "journal.jsonl")[0] if e.kind in KINDS]
    data = [{k: v for k, v in e.data.items() if k not in TIMES} for e in kept]
    return [
        json.dumps([e.kind, e.trial, d], sort_keys=True) for e, d in zip(kept, data, strict=True)
    ]


def test_the_run_folder_is_whole(whole: tuple[Path, str]) -> None:
    run, _ = whole
    for name in ("run.json", "data.json", "folds.parquet", "journal.jsonl", "trials.parquet",
                 "leaderboard.csv", "submission.csv", "ensemble/manifest.json"):  # fmt: skip
        assert (run / name).is_file(), name
    metas = list(run.glob("oof/*/meta.json"))
    assert len(metas) >= 3
    for meta in metas:
        pred_TN = np.load(meta.parent / "pred.npy")
        assert pred_TN.shape == (GENES, 60) and np.isfinite(pred_TN).all()
    assert not list(run.glob("work/*")) and not list(run.rglob("*.pkl"))


def test_the_submission_has_the_samples_rows_and_columns(
    whole: tuple[Path, str], data: Path
) -> None:
    sample, made = rows_of(data / "sample_submission.csv"), rows_of(whole[0] / "submission.csv")
    assert made[0] == sample[0] and [r[0] for r in made] == [r[0] for r in sample]
    assert np.isfinite(np.array([row[1:] for row in made[1:]], dtype=float)).all()


def test_models_beat_the_mean_profile(whole: tuple[Path, str]) -> None:
    header, *rows = rows_of(whole[0] / "leaderboard.csv")
    score = {row[header.index("name")]: float(row[header.index("score")] or "nan") for row in rows}
    trials = [value for name, value in score.items() if name.startswith("trial")]
    assert np.nanmax(trials) > score["mean_profile"] + 0.2


def test_the_output_is_calm_and_fits_80_columns(whole: tuple[Path, str]) -> None:
    _, output = whole
    lines = output.splitlines()
    for noise in ("Traceback", "WARNING", "raylet", "tune.run", "Trial status"):
        assert noise not in output
    # Paths cannot be broken; everything else fits.
    assert [line for line in lines if len(line) > 80 and "/" not in line] == []
    assert "plan: workers 1" in output and "optimistic" in output and "nested" in output


def test_the_bundle_gives_the_runs_submission(whole: tuple[Path, str], data: Path) -> None:
    run, _ = whole
    call(run / "ensemble", "--data", data, "--out", run.parent / "again.csv", cwd=run.parent,
         module="ensemble.predict")  # fmt: skip
    first, second = rows_of(run / "submission.csv"), rows_of(run.parent / "again.csv")
    assert [row[0] for row in first] == [row[0] for row in second] and first[0] == second[0]
    a, b = (np.array([row[1:] for row in rows[1:]], dtype=float) for rows in (first, second))
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_a_finished_run_resumes_to_itself(whole: tuple[Path, str]) -> None:
    run, _ = whole
    before = decisions(run)
    output = call("--resume", run, cwd=run.parent)
    assert decisions(run) == before and "ensemble" in output


@pytest.mark.parametrize("kill_at", ["decision", "fold"])
def test_killed_and_resumed_it_ends_as_an_unbroken_run(
    whole: tuple[Path, str], data: Path, tmp_path: Path, kill_at: str
) -> None:
    process = start("gene_expr", "--data", data, "--out", "run", "--trials", 6, *SMALL,
                    cwd=tmp_path)  # fmt: skip
    journal = tmp_path / "run" / "journal.jsonl"
    wanted = f'"kind":"{kill_at}","trial":2,'
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and wanted in journal.read_text():
            break
        time.sleep(0.02)
    assert process.poll() is None, "the run ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    folds_done = {(e.trial, e.data["fold"]) for e in read_events(journal)[0] if e.kind == "fold"}
    call("--resume", "run", cwd=tmp_path)
    run = tmp_path / "run"
    assert decisions(run) == decisions(whole[0])
    events = read_events(journal)[0]
    folds = [(e.trial, e.data["fold"]) for e in events if e.kind == "fold"]
    assert len(folds) == len(set(folds)) and folds_done < set(folds)
    for path in sorted(whole[0].glob("oof/*/*.npy")):
        assert path.read_bytes() == (run / path.relative_to(whole[0])).read_bytes(), path
    assert rows_of(run / "submission.csv") == rows_of(whole[0] / "submission.csv")


def test_ctrl_c_once_ends_with_what_is_there(data: Path, tmp_path: Path) -> None:
    process = start("gene_expr", "--data", data, "--out", "run", "--trials", 400, *SMALL,
                    cwd=tmp_path, cores=2)  # fmt: skip
    journal = tmp_path / "run" / "journal.jsonl"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and '"state":"finished"' in journal.read_text():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 130, output
    assert "Ctrl-C" in output and "--resume" in output and "Traceback" not in output
    run = tmp_path / "run"
    assert (run / "leaderboard.csv").is_file() and (run / "submission.csv").is_file()
    kinds = [e.kind for e in read_events(journal)[0]]
    assert kinds.count("ask") == kinds.count("end")


def test_a_second_process_may_not_work_on_the_same_run(whole: tuple[Path, str]) -> None:
    from filelock import FileLock

    with FileLock(whole[0] / ".lock"):
        process = start("--resume", whole[0], cwd=whole[0].parent)
        output, _ = process.communicate(timeout=100)
    assert process.returncode == 1 and "another process works on" in output


def test_a_dry_run_prints_the_plan_and_writes_no_run(data: Path, tmp_path: Path) -> None:
    output = call("gene_expr", "--data", data, "--out", "run", "--dry-run", *SMALL, cwd=tmp_path)
    assert "plan: rungs" in output and not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", ["ask", "attempt", "epochs", "end"])
def test_killed_anywhere_else_it_also_ends_as_an_unbroken_run(
    whole: tuple[Path, str], data: Path, tmp_path: Path, kill_at: str
) -> None:
    test_killed_and_resumed_it_ends_as_an_unbroken_run(whole, data, tmp_path, kill_at)


@pytest.mark.slow
def test_a_running_ray_cluster_is_joined_and_left_running(data: Path, tmp_path: Path) -> None:
    ray = Path(sys.executable).parent / "ray"
    environment = os.environ | {"RAY_AUTH_MODE": "token"}
    head = [ray, "start", "--head", "--num-cpus=2", "--port=6397", "--include-dashboard=false"]
    subprocess.run(
        [*head, "--object-store-memory=200000000"], check=True, env=environment, timeout=100,
        capture_output=True,
    )  # fmt: skip
    try:
        output = call("gene_expr", "--data", data, "--out", "run", "--trials", 3, *SMALL,
                      "--address", "127.0.0.1:6397", cwd=tmp_path)  # fmt: skip
        assert "plan: workers 2: 2 CPU cores" in output
        status = subprocess.run(
            [ray, "status", "--address=127.0.0.1:6397"], env=environment, timeout=100,
            capture_output=True,
        )  # fmt: skip
        assert status.returncode == 0
    finally:
        subprocess.run([ray, "stop"], check=True, env=environment, timeout=100, capture_output=True)


def test_an_address_where_nothing_answers_is_the_users_fault(data: Path, tmp_path: Path) -> None:
    process = start("gene_expr", "--data", data, "--address", "127.0.0.1:1", cwd=tmp_path)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 1 and "no Ray cluster answers at '127.0.0.1:1'" in output
    assert "Traceback" not in output and not (tmp_path / "runs").exists()
