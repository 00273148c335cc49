"""A bundle on disk: written whole, verified byte by byte, sufficient by itself."""

import ast
import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ensemble import predict as prediction
from ensemble.build import build
from ensemble.bundle import Bundle, file_digest
from ensemble.export import export
from ensemble.members import RunFacts, load_members, score_truth
from ensemble.submission import SubmissionForm
from ensemble.vendor import closure, requirements
from search.run_folder import RunFolder
from spaces.errors import UserError
from tests.bundles import (
    NAMES,
    REPO,
    TEST,
    WEIGHTS,
    export_blend,
    make_blend,
    make_report,
    read_csv,
    spoil,
    write_csv,
)


def test_a_bundle_holds_the_members_of_the_blend_and_no_others(built):
    bundle = Bundle.open(built.run.ensemble)
    assert [member.name for member in bundle.members] == ["1", "0"]
    assert [member.weight for member in bundle.members] == [0.75, 0.25]
    assert bundle.blend.members == (0, 1) and bundle.blend.weights == WEIGHTS
    assert bundle.task_type == "regression"
    models = sorted(p.relative_to(bundle.root) for p in bundle.root.rglob("fold-*.safetensors"))
    assert models == [Path(f"models/0{m}/fold-{k}.safetensors") for m in (0, 1) for k in range(3)]
    with pytest.raises(UserError, match=r"member 2 is not in .*; it has: 1, 0"):
        bundle.member("2")


def test_build_leaves_a_verified_bundle_and_a_submission_in_the_samples_order(trained, tmp_path):
    run = RunFolder(tmp_path / "run")
    shutil.copytree(trained.run.root, run.root)
    result = build(run)
    bundle = Bundle.open(run.ensemble)
    assert sum(member.weight for member in bundle.members) == pytest.approx(1)
    assert {member.name: member.weight for member in bundle.members} == (
        json.loads((run.ensemble / "ensemble.json").read_text())["weights"]
    )
    assert result.submission == run.root / "submission.csv"
    files = trained.data / "sample_submission.csv", result.submission
    sample, ours = (read_csv(path) for path in files)
    assert [sample[0], *(row[0] for row in sample)] == [ours[0], *(row[0] for row in ours)]
    assert not list(run.root.glob(".ensemble.*.old"))


def test_names_of_joined_runs_make_no_folders(trained, tmp_path):
    pool = load_members(trained.run)
    named = [dataclasses.replace(member, name=f"/runs/../{member.name}") for member in pool.members]
    pool = dataclasses.replace(pool, members=tuple(named))
    report = make_report(pool, make_blend())
    bundle = export(pool, make_blend(), report, ("ID", *NAMES), tmp_path / "bundle")
    (part,) = Bundle.open(bundle.root).member("/runs/../1").parts
    assert part.models["0"] == "models/00/fold-0.safetensors"


def test_the_report_is_kept_as_it_is_and_the_readme_shows_it(built):
    report = make_report(load_members(built.run), make_blend())
    kept = json.loads((built.run.ensemble / "ensemble.json").read_text())
    assert {name: kept[name] for name in report} == report
    readme = (built.run.ensemble / "README.md").read_text()
    assert "| ensemble, nested | 0.5000 ± 0.0100 | nested |" in readme
    assert "| 1 | 0.750 | test_resnet | 48 | 1.2500 |" in readme
    assert "the weighted mean of members' predictions" in readme


def test_the_bundle_predicts_without_ray_optuna_and_this_package(built, tmp_path):
    """Isolated mode, another folder, no path to the repository, and what must not be needed cannot
    be found."""
    moved = tmp_path / "moved"
    shutil.copytree(built.run.ensemble, moved)
    runner = tmp_path / "runner.py"
    runner.write_text(f"""
import runpy, sys
from pathlib import Path

class Without:  # what is refused looks as if it were not installed
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        absent = name.split(".")[0] in ("ray", "optuna", "sklearn", "pyarrow")
        return None if absent else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(f) for f in sys.meta_path if "editable" not in str(f).lower()]
sys.path[:] = [p for p in sys.path if Path(p).resolve() != Path({str(REPO)!r})]
for name in ("ray", "optuna", "ensemble"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{{name}} can still be imported")
sys.argv[0] = {str(moved / "predict.py")!r}
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    for name in ("spaces", "search", "ensemble"):
        file = sys.modules[name].__file__
        assert file.startswith({str(moved)!r}), file
""")
    out = tmp_path / "isolated.csv"
    done = subprocess.run(
        [sys.executable, "-I", str(runner), "--data", str(built.data), "--out", str(out)],
        cwd=tmp_path, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours = tmp_path / "ours.csv"
    prediction.main([str(built.run.ensemble), "--data", str(built.data), "--out", str(ours)])
    assert out.read_bytes() == ours.read_bytes()
    assert Bundle.open(moved)  # running added nothing that changes a digest
    assert not list(moved.rglob("__pycache__"))


def test_the_vendored_code_needs_no_search_libraries_and_every_import_is_pinned():
    found = closure()
    assert not {"ray", "optuna", "sklearn", "pyarrow", "rich"} & set(found.packages)
    assert {"torch", "timm", "numpy", "PIL"} <= set(found.packages)
    files = {str(path) for path in found.files}
    assert {"ensemble/predict.py", "ensemble/blend.py", "search/model/infer.py"} <= files
    choosing = (
        "engines",
        "combiners",
        "greedy",
        "members",
        "bench",
        "choose",
        "metrics",
        "derived",
    )
    assert not [file for file in files if any(word in file for word in choosing)]
    pins = {line.split("==")[0] for line in requirements(found)}
    assert {"torch", "torchvision", "timm", "pillow", "numpy", "pandas", "safetensors"} <= pins
    assert all("+" not in line for line in requirements(found))


def test_the_closure_follows_lazy_imports_but_not_those_of_type_checking(tmp_path):
    for name, text in {
        "ensemble/__init__.py": "def __getattr__(name):\n    import ray\n",
        "ensemble/predict.py": (
            "from ensemble import late\ndef f():\n    from search.deep import x\n"
        ),
        "ensemble/late.py": (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import optuna\n"
        ),
        "search/__init__.py": "",
        "search/deep.py": "import json\nimport numpy.linalg\n",
        "search/unused.py": "import ray\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        ast.parse(text)
    found = closure(root=tmp_path)
    assert [str(file) for file in found.files] == [
        "ensemble/__init__.py",
        "ensemble/late.py",
        "ensemble/predict.py",
        "search/__init__.py",
        "search/deep.py",
    ]
    assert found.packages == ("numpy",)


def test_a_changed_byte_in_any_file_is_refused_by_name(bundle):
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    assert len(files) > 25
    for path in files:
        if path.name != "manifest.json":
            file_digest(path)  # known to this process: that must not count when verifying
        before = path.read_bytes()
        spoil(path)
        with pytest.raises(UserError, match="was changed") as caught:
            Bundle.open(bundle)
        assert str(path) in caught.value.faults[0]
        path.write_bytes(before)
    assert Bundle.open(bundle)


def test_missing_files_are_all_named_and_another_folder_is_no_bundle(bundle, tmp_path):
    gone = [bundle / "README.md", next((bundle / "models").rglob("fold-1.safetensors"))]
    for path in gone:
        path.unlink()
    with pytest.raises(UserError) as caught:
        Bundle.open(bundle)
    assert sorted(f.split(" is missing")[0] for f in caught.value.faults) == sorted(map(str, gone))
    with pytest.raises(UserError, match="is no bundle"):
        Bundle.open(tmp_path)


def test_the_command_refuses_a_changed_bundle_with_exit_1_and_writes_nothing(bundle, built):
    spoil(bundle / "requirements.txt")
    out = bundle / "out.csv"
    done = subprocess.run(
        [sys.executable, str(bundle / "predict.py"), "--data", str(built.data), "--out", str(out)],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 1
    assert "requirements.txt was changed" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_test_predictions_are_scored_against_the_rows_of_the_truth(built, tmp_path):
    facts = RunFacts.read(built.run)
    truth = built.data / "truth.csv"
    form = SubmissionForm.load(built.run.form)
    pred_TN = np.random.default_rng(0).random((3, TEST))
    rows = [row[:1] + [float(value) for value in row[1:]] for row in read_csv(truth)[1:]]
    true_TN = np.array([row[1:] for row in rows]).T
    assert score_truth(pred_TN, form.test_ids, truth, facts) == facts.metric.score(pred_TN, true_TN)
    some = tmp_path / "some.csv"
    write_csv(some, [("ID", *NAMES), *rows[5:1:-1]])
    wanted = facts.metric.score(pred_TN[:, 5:1:-1], true_TN[:, 5:1:-1])
    assert score_truth(pred_TN, form.test_ids, some, facts) == wanted
    with pytest.raises(UserError, match=f"no test rows: {rows[0][0]}"):
        score_truth(pred_TN[:, 1:], form.test_ids[1:], truth, facts)


def test_exporting_again_replaces_the_bundle_and_spares_other_folders(trained, tmp_path):
    out = tmp_path / "new" / "bundle"
    export_blend(trained.run, out)
    (out / "old").touch()
    export_blend(trained.run, out, make_blend(members=(0,), weights=(1.0,)))
    assert not (out / "old").exists()
    assert len(Bundle.open(out).members) == 1
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("keep")
    with pytest.raises(UserError, match="is no bundle"):
        export_blend(trained.run, mine)
    assert (mine / "thesis.txt").read_text() == "keep"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "new"]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["bundle"]


def test_a_failed_export_names_all_members_without_models_and_leaves_the_old_bundle(
    trained, tmp_path
):
    run = RunFolder(tmp_path / "run")
    shutil.copytree(trained.run.root, run.root)
    export_blend(run, run.ensemble)
    for model in run.root.glob("checkpoints/*/fold-2.safetensors"):
        model.unlink()
    with pytest.raises(UserError, match=r"lacks the models of folds 2 in") as caught:
        export_blend(run, run.ensemble)
    assert [fault.split()[1] for fault in caught.value.faults] == ["1", "0"]
    assert Bundle.open(run.ensemble)
    assert [p for p in run.root.iterdir() if p.name.startswith(".ensemble.") and p.is_dir()] == []


def test_predictions_without_models_make_no_bundle(trained, tmp_path):
    pool = load_members(trained.run)
    alone = [dataclasses.replace(member, parts=()) for member in pool.members]
    pool = dataclasses.replace(pool, members=tuple(alone))
    with pytest.raises(UserError, match="member 1 has predictions but no models"):
        export(pool, make_blend(), make_report(pool, make_blend()), ("ID",), tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_a_run_without_members_and_a_damaged_member_are_told(trained, tmp_path):
    run = RunFolder(tmp_path / "run")
    shutil.copytree(trained.run.root, run.root)
    with open(run.oof(0) / "pred.npy", "r+b") as file:
        file.truncate(200)
    with pytest.raises(UserError, match="member 0000"):
        load_members(run)
    shutil.rmtree(run.root / "oof")
    with pytest.raises(UserError, match="has no member"):
        load_members(run)


def test_a_bundle_of_another_format_names_its_own_predict(bundle):
    path = bundle / "manifest.json"
    data = {**json.loads(path.read_text()), "format": 1}
    content = {name: value for name, value in data.items() if name != "digest"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**data, "digest": digest}))
    with pytest.raises(UserError, match=r"has format 1; this version reads 3: use the predict\.py"):
        Bundle.open(bundle)
