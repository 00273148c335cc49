"""Runs and bundles that somebody made with bad intent: refused, and nothing is executed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ensemble.bundle import Bundle, _content_digest
from search.journal import read_events
from search.run_folder import RunFolder
from search.setup import reopen
from spaces.errors import UserError


def forge(root: Path, **changes: Any) -> Path:
    """A bundle whose manifest says something else, with a digest that fits."""
    path = root / "manifest.json"
    data = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({**data, "digest": _content_digest(data)}))
    return root


def members_with(root: Path, name: str) -> list[Any]:
    members = json.loads((root / "manifest.json").read_text())["members"]
    members[0]["parts"][0]["models"]["0"] = name
    return members


@pytest.mark.parametrize("name", ("../secret.safetensors", "/etc/passwd", "models/../../secret"))
def test_a_bundle_that_names_files_outside_of_itself_is_refused(bundle: Path, name: str) -> None:
    with pytest.raises(UserError, match="lies outside the bundle"):
        Bundle.open(forge(bundle, members=members_with(bundle, name)))


def test_a_link_out_of_a_bundle_is_refused(bundle: Path) -> None:
    model = next(bundle.rglob("fold-0.safetensors"))
    outside = shutil.move(model, bundle.parent / "outside.safetensors")
    model.symlink_to(outside)
    with pytest.raises(UserError, match="lies outside the bundle"):
        Bundle.open(bundle)


def test_a_model_without_a_digest_is_refused(bundle: Path) -> None:
    shutil.copy(next(bundle.rglob("fold-0.safetensors")), bundle / "extra.safetensors")
    with pytest.raises(UserError, match="has no digest in the manifest"):
        Bundle.open(forge(bundle, members=members_with(bundle, "extra.safetensors")))


@pytest.mark.parametrize(
    "changes", ({"files": 3}, {"members": [{}]}, {"members": "x"}, {"layout": []}, {"task": None})
)
def test_a_manifest_of_other_things_is_told_in_one_line(
    bundle: Path, changes: dict[str, Any]
) -> None:
    forged = forge(bundle, **changes)
    if "task" in changes:
        data = json.loads((forged / "manifest.json").read_text())
        del data["task"]
        (forged / "manifest.json").write_text(json.dumps({**data, "digest": _content_digest(data)}))
    with pytest.raises(UserError, match="is no manifest of a bundle"):
        Bundle.open(forged)


@pytest.fixture
def run(whole: tuple[Path, str], tmp_path: Path) -> RunFolder:
    shutil.copytree(whole[0], tmp_path / "run")
    return RunFolder(tmp_path / "run")


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_task_file_that_comes_with_a_run_is_not_executed(run: RunFolder, tmp_path: Path) -> None:
    trap = run.root / "task.py"
    trap.write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    for name in (trap, run.root / "checkpoints" / ".." / "task.py"):
        change(run.run, task=str(name))
        with pytest.raises(UserError, match="lies in the run's own folder"):
            reopen(run.root)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("changes", ({"plan": 3}, {"resources": {}}, {"means": None}))
def test_a_run_file_of_other_things_is_told_in_one_line(
    run: RunFolder, changes: dict[str, Any]
) -> None:
    change(run.run, **changes)
    with pytest.raises(UserError, match="is none that this version wrote"):
        reopen(run.root)


@pytest.mark.parametrize("name", ("trial", "attempt"))
def test_a_journal_whose_numbers_are_paths_is_refused(tmp_path: Path, name: str) -> None:
    line = {"format": 2, "seq": 0, "time": 0.0, "kind": "ask", "trial": 0, "attempt": 0, "data": {}}
    path = tmp_path / "journal.jsonl"
    path.write_text(json.dumps({**line, name: "../../x"}) + "\n" + json.dumps(line) + "\n")
    with pytest.raises(UserError, match="line 1 is damaged"):
        read_events(path)
