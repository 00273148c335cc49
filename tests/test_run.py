"""The main job as a person runs it: one command, then everything is there."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from search.warm_start import JUDGED
from tests.runs import GENES, SMALL, call, decisions, events_of, rows_of, start


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
    whole: tuple[Path, str], tiles: Path
) -> None:
    sample, made = rows_of(tiles / "sample_submission.csv"), rows_of(whole[0] / "submission.csv")
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


def test_the_bundle_gives_the_runs_submission(whole: tuple[Path, str], tiles: Path) -> None:
    run, _ = whole
    call(run / "ensemble", "--data", tiles, "--out", run.parent / "again.csv", cwd=run.parent,
         module="ensemble.predict")  # fmt: skip
    first, second = rows_of(run / "submission.csv"), rows_of(run.parent / "again.csv")
    assert [row[0] for row in first] == [row[0] for row in second] and first[0] == second[0]
    a, b = (np.array([row[1:] for row in rows[1:]], dtype=float) for rows in (first, second))
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_a_finished_run_resumes_to_itself_and_sweeps_what_a_kill_left_over(
    whole: tuple[Path, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    members = {path.parent.name for path in run.glob("oof/*/meta.json")}
    pruned = next(f"{e.trial:04d}" for e in events_of(run) if e.data.get("state") == "pruned")
    member = min(members)
    for name in (f"work/{pruned}-1/epoch-0.safetensors", f"work/{member}-2/fold-1.npy",
                 f"oof/{pruned}/fold-0.npy", f"checkpoints/{pruned}/fold-0.safetensors",
                 f"oof/{member}/.pred.0123abcd.npy"):  # fmt: skip
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(b"left over")
    output = call("--resume", run, cwd=tmp_path)
    assert decisions(run) == decisions(whole[0]) and "ensemble" in output
    assert {path.name for path in run.glob("oof/*")} == members
    assert {path.name for path in run.glob("checkpoints/*")} == members
    assert not list(run.glob("work/*")) and not list(run.glob("oof/*/.*"))


def test_ctrl_c_once_ends_with_what_is_there(tiles: Path, tmp_path: Path) -> None:
    process = start("gene_expr", "--data", tiles, "--out", "run", "--trials", 400, *SMALL,
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
    # What was under way stays so, for a resumed run to go on with.
    assert {e.data["state"] for e in events_of(run) if e.kind == "end"} <= set(JUDGED)


def test_a_second_process_may_not_work_on_the_same_run(whole: tuple[Path, str]) -> None:
    from filelock import FileLock

    with FileLock(whole[0] / ".lock"):
        process = start("--resume", whole[0], cwd=whole[0].parent)
        output, _ = process.communicate(timeout=100)
    assert process.returncode == 1 and "another process works on" in output


def test_a_dry_run_prints_the_plan_and_writes_no_run(tiles: Path, tmp_path: Path) -> None:
    output = call("gene_expr", "--data", tiles, "--out", "run", "--dry-run", *SMALL, cwd=tmp_path)
    assert "plan: rungs" in output and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_running_ray_cluster_is_joined_and_left_running(tiles: Path, tmp_path: Path) -> None:
    ray = Path(sys.executable).parent / "ray"
    environment = os.environ | {"RAY_AUTH_MODE": "token"}
    head = [ray, "start", "--head", "--num-cpus=2", "--port=6397", "--include-dashboard=false"]
    subprocess.run(
        [*head, "--object-store-memory=200000000"], check=True, env=environment, timeout=100,
        capture_output=True,
    )  # fmt: skip
    try:
        output = call("gene_expr", "--data", tiles, "--out", "run", "--trials", 3, *SMALL,
                      "--address", "127.0.0.1:6397", cwd=tmp_path)  # fmt: skip
        assert "plan: workers 2: 2 CPU cores" in output
        status = subprocess.run(
            [ray, "status", "--address=127.0.0.1:6397"], env=environment, timeout=100,
            capture_output=True,
        )  # fmt: skip
        assert status.returncode == 0
    finally:
        subprocess.run([ray, "stop"], check=True, env=environment, timeout=100, capture_output=True)


def test_an_address_where_nothing_answers_is_the_users_fault(tiles: Path, tmp_path: Path) -> None:
    process = start("gene_expr", "--data", tiles, "--address", "127.0.0.1:1", cwd=tmp_path)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 1 and "no Ray cluster answers at '127.0.0.1:1'" in output
    assert "Traceback" not in output and not (tmp_path / "runs").exists()
