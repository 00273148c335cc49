"""Greedy soups of a run's own fold models."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from ensemble.derived.soup import average_models, choose_ingredients, make_soups
from ensemble.members import load_members
from search.model.infer import FACTS, FoldModel, save_model
from search.run_folder import read_json
from spaces.errors import UserError
from spaces.recipe import Recipe
from tests.modelruns import ROWS, ModelRun, base, noisy, one_thread


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two noisy copies of a base, a third far off, and some that fit nobody. Not to be changed."""
    made = ModelRun(tmp_path_factory.mktemp("soup"))
    made.add(noisy(0.5))
    made.add(noisy(0.5))
    made.add(noisy(5.0))
    made.add(noisy(0.5), weights="random")
    made.add(noisy(0.5), pooling="max")
    made.add(head="mlp")

    def other_scale(state, generator):
        state["target.std"] = state["target.std"] * 2

    made.add(other_scale)
    return made


@pytest.fixture
def own(made, tmp_path):
    """A copy of the run to write into."""
    shutil.copytree(made.run.root, tmp_path / "run")
    return type(made.run)(tmp_path / "run")


@pytest.fixture
def calls(monkeypatch):
    """The number of rows of each inference."""
    found = []
    predict = FoldModel.predict

    def counted(self, images_NHWC, *args, rows=None, **kwargs):
        found.append(len(images_NHWC) if rows is None else len(rows))
        return predict(self, images_NHWC, *args, rows=rows, **kwargs)

    monkeypatch.setattr(FoldModel, "predict", counted)
    return found


def test_a_soup_is_the_mean_of_its_models(tmp_path):
    recipe = Recipe(backbone="test_resnet", weights="pretrained", image_size=32)
    states, files = [], [tmp_path / f"{number}.safetensors" for number in range(3)]
    for number, path in enumerate(files):
        states.append(base(recipe, number))
        for name, tensor in states[-1].items():
            if "running_" in name:
                tensor += number
            if name in FACTS:
                states[-1][name] = states[0][name]
            if "num_batches" in name:
                tensor += 5 + number
        save_model(path, states[-1], recipe.to_dict(), 3)
    average_models(files, tmp_path / "out.safetensors", recipe.to_dict())
    counters = 0
    for name, tensor in load_file(tmp_path / "out.safetensors").items():
        if tensor.is_floating_point():
            mean = torch.stack([state[name].double() for state in states]).mean(dim=0)
            assert torch.equal(tensor, mean.float()), name
        else:
            counters += 1
            assert torch.equal(tensor, states[0][name]) and tensor == 5, name
    assert counters
    FoldModel.load(tmp_path / "out.safetensors")


def test_only_members_of_one_start_and_shape_are_joined(own):
    pool = load_members(own)
    soups, notes = make_soups(pool, own)
    assert len(soups) == 1
    assert set(soups[0].name.removeprefix("soup ").split("+")) <= {"0", "1", "2"}
    said = {number: [n for n in notes if f"no soup of {number}:" in n] for number in "3456"}
    assert "random weights" in said["3"][0]
    assert "pooling (max and avg)" in said["4"][0]
    assert "mlp head" in said["5"][0]
    assert "target.std" in said["6"][0]
    assert len(notes) == 4


def test_a_soup_beats_its_ingredients_and_is_what_its_files_predict(own, made):
    pool = load_members(own)
    (soup,), _ = make_soups(pool, own)
    assert soup.name == "soup 0+1"
    assert "0+1 in all" in soup.note

    def error(pred_TN):
        return float(np.sqrt(np.square(pred_TN - pool.true_TN).mean()))

    assert error(soup.pred_TN) < min(error(m.pred_TN) for m in pool.members[:3])
    tests = []
    for fold in range(pool.folds):
        rows = np.flatnonzero(pool.fold_N == fold)
        model = FoldModel.load(soup.parts[0].folder / f"fold-{fold}.safetensors")
        np.testing.assert_array_equal(
            soup.pred_TN[:, rows], model.predict(made.images_NHWC, rows=rows).T
        )
        tests.append(model.predict(made.images_NHWC[ROWS:]).T)
    np.testing.assert_allclose(
        np.load(soup.oof_folder / "test.npy"), np.mean(tests, axis=0), rtol=1e-5
    )
    files = [soup.parts[0].folder / f"fold-{fold}.safetensors" for fold in range(pool.folds)]
    assert soup.cost.mb == pytest.approx(sum(path.stat().st_size for path in files) / 2**20)
    assert soup.cost.ms == 2.0 and soup.layer is None and soup.parts[0].decode_size == 32


def test_what_goes_into_a_fold_hangs_on_the_other_folds_alone(own):
    pool = load_members(own)

    def cook(pool):
        shutil.rmtree(own.root / "derived", ignore_errors=True)
        make_soups(pool, own)
        folder = own.derived("soup-1")
        models = sorted(folder.glob("fold-*.safetensors"))
        return read_json(folder / "manifest.json")["ingredients"], [load_file(m) for m in models]

    before, models = cook(pool)
    assert len(models) == pool.folds
    for fold in range(pool.folds):
        rows = pool.fold_N == fold
        true_TN = np.array(pool.true_TN)
        true_TN[:, rows] = pool.members[1].pred_TN[:, rows]  # one is right, in this fold
        after, others = cook(dataclasses.replace(pool, true_TN=true_TN))
        assert after[fold] == before[fold]
        for name, tensor in others[fold].items() if others else ():
            assert torch.equal(tensor, models[fold][name])
        # The other folds do choose by it.
        assert [a for k, a in enumerate(after) if k != fold] != [
            b for k, b in enumerate(before) if k != fold
        ]


def test_nothing_is_inferred_twice(own, calls):
    pool = load_members(own)
    (first,), notes = make_soups(pool, own)
    assert sum(calls) > 0
    pairs = 3  # 0+1, then 0+1+2 is tried; fold by fold one more set may be best
    assert sum(calls) <= pairs * ROWS + 5 * pool.folds
    before = np.array(first.pred_TN)
    calls.clear()
    (again,), same = make_soups(pool, own)
    assert not calls
    assert (again.name, again.note, same) == (first.name, first.note, notes)
    np.testing.assert_array_equal(again.pred_TN, before)
    path = own.checkpoints(1) / "fold-0.safetensors"
    path.write_bytes(path.read_bytes())  # a new time
    make_soups(pool, own)
    assert calls


def test_a_soup_of_one_is_no_member(tmp_path):
    made = ModelRun(tmp_path)
    made.add(noisy(0.05))
    made.add(noisy(8.0))
    soups, notes = make_soups(load_members(made.run), made.run)
    assert not soups
    assert notes == ["soup of 0+1: no second ingredient kept the score in any fold"]
    assert make_soups(load_members(made.run), made.run) == (soups, notes)
    assert not list(made.run.derived("soup-1").glob("*.npy"))


def test_lost_images_are_told(own, made):
    (own.run).write_text(own.run.read_text().replace(str(made.store), str(made.store) + "x"))
    with pytest.raises(UserError, match=r"is gone; resume the run.*--resume"):
        make_soups(load_members(own), own)


def test_a_member_without_its_models_takes_no_part(own):
    (own.checkpoints(0) / "fold-2.safetensors").unlink()
    soups, notes = make_soups(load_members(own), own)
    assert any(note.startswith("0 takes no part") and "[2]" in note for note in notes)
    assert all("0" not in soup.name for soup in soups)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=6), st.randoms())
def test_greedy_keeps_an_ingredient_exactly_when_the_score_does_not_drop(gains, random):
    order = list(range(len(gains)))
    random.shuffle(order)
    tried = []

    def score(ingredients):
        tried.append(ingredients)
        return sum(gains[m] for m in ingredients)

    chosen = choose_ingredients(order, score)
    expected = {order[0], *(m for m in order[1:] if gains[m] >= 0)}
    assert set(chosen) == expected and list(chosen) == sorted(chosen)
    assert len(tried) == len(order)


def test_soups_of_views_predict_rows(tmp_path):
    made = ModelRun(tmp_path, views=2)
    for fusion in ("max", "max", "attention"):
        made.add(noisy(0.5), fusion=fusion)
    (soup,), (note,) = make_soups(load_members(made.run), made.run)
    assert soup.name == "soup 0+1"
    assert note.startswith("no soup of 2: a learned fusion")
    model = FoldModel.load(soup.parts[0].folder / "fold-0.safetensors")
    assert model.views == 2
    rows = np.flatnonzero(made.fold_N == 0)
    pred_NT = model.predict(made.images_NHWC[: 2 * ROWS])
    np.testing.assert_allclose(soup.pred_TN[:, rows], pred_NT[rows].T, atol=1e-4)
    assert np.load(soup.oof_folder / "test.npy").shape == (3, len(made.images_NHWC) // 2 - ROWS)
