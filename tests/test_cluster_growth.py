"""How far a cluster may grow, as the launcher's settings on the head say it."""

import json
from pathlib import Path
from typing import Any

import pytest

from search.cluster import _may_grow_to

KINDS = {
    "head": {"max_workers": 9, "resources": {"CPU": 4}},
    "gpu": {"max_workers": 4, "resources": {"CPU": 8, "GPU": 1, "memory": 10**10}},
    "big": {"max_workers": 4, "resources": {"CPU": 48, "GPU": 4}},
}


def settings(folder: Path, **changes: Any) -> Path:
    path = folder / "settings.yaml"
    told = {"max_workers": 6, "head_node_type": "head", "available_node_types": KINDS, **changes}
    path.write_text(json.dumps(told))
    return path


def test_all_workers_count_up_to_the_limit_of_all_kinds_and_the_head_does_not(
    tmp_path: Path,
) -> None:
    grown = _may_grow_to(settings(tmp_path))
    assert (grown["CPU"], grown["GPU"]) == (4 * 8 + 2 * 48, 4 * 1 + 2 * 4)
    assert _may_grow_to(settings(tmp_path, max_workers=3))["GPU"] == 3


@pytest.mark.parametrize("changes", ({"max_workers": None}, {"available_node_types": []}))
def test_settings_of_another_kind_promise_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert _may_grow_to(settings(tmp_path, **changes)) == {}
    assert _may_grow_to(tmp_path / "absent") == {}
    (tmp_path / "text").write_text("no: json")
    assert _may_grow_to(tmp_path / "text") == {}
