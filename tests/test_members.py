"""Members of runs: joined only where everything that must agree does."""

import shutil

import numpy as np
import pytest

from ensemble.build import build
from ensemble.members import load_members
from ensemble.predict import predict_folder
from search.run_folder import RunFolder, read_json, write_json
from spaces.errors import UserError


@pytest.fixture
def pair(built, tmp_path):
    """A run and its copy, whose members are twins."""
    runs = []
    for name in ("one", "two"):
        shutil.copytree(built.run.root, tmp_path / name)
        runs.append(RunFolder(tmp_path / name))
    return runs


def test_members_of_joined_runs_are_named_by_run_and_trial(pair):
    pool = load_members(*pair)
    assert {m.name.split("/")[0] for m in pool.members} == {"one", "two"}
    assert len(pool.members) == 2 * len(load_members(pair[0]).members)


def test_a_joined_bundle_predicts_its_own_submission(pair, built, tmp_path):
    result = build(*pair, out=tmp_path / "joined")
    assert {name.split("/")[0] for name in result.choice.report["weights"]} == {"one"}
    reasons = [row["reason"] for row in result.choice.report["discarded"]]
    assert sum("twin of one/" in reason for reason in reasons) >= len(result.choice.blend.members)
    predict_folder(result.bundle, built.data, tmp_path / "again.csv")
    first, again = (np.genfromtxt(path, delimiter=",", skip_header=1)[:, 1:]
                    for path in (result.submission, tmp_path / "again.csv"))  # fmt: skip
    assert again == pytest.approx(first, abs=1e-3)


def test_one_run_given_twice_and_no_out_are_refused_together(pair):
    with pytest.raises(UserError) as caught:
        build(pair[0], pair[0])
    assert len(caught.value.faults) == 2


def test_runs_with_other_target_values_are_not_joined(pair):
    true_TN = np.load(pair[1].targets)
    np.save(pair[1].targets, true_TN[:, ::-1])
    with pytest.raises(UserError, match="other target values"):
        load_members(*pair)


def test_runs_of_another_task_and_metric_are_refused_with_all_differences(pair):
    data = read_json(pair[1].run)
    data["task"], data["metric"]["args"]["heg_n"] = "other", 7
    write_json(pair[1].run, {k: v for k, v in data.items() if k != "format"})
    with pytest.raises(UserError, match="other task, metric than"):
        load_members(*pair)


def test_a_member_without_test_predictions_costs_the_submission_and_it_is_said(pair):
    run = pair[0]
    submission = run.root / "submission.csv"
    submission.write_text("of an older ensemble")
    for member in load_members(run).members:
        (member.oof_folder / "test.npy").unlink()
    result = build(run)
    assert result.submission is None and not submission.exists()
    assert "no submission" in read_json(run.ensemble / "ensemble.json")["notes"][0]
