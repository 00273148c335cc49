"""The embedded sample has the competition's layout, is deterministic, and can be learned."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from search.baselines import BASELINES
from search.metrics import fold_scores, get_metric, mean_score
from search.train.fold import FoldJob, train_fold
from spaces.parts import Regression
from spaces.recipe import Recipe
from spaces.samples.gene_expr import TILES, write_sample
from spaces.samples.tissue import GENES, SLIDES, draw_tile, draw_tissue, gene_names


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, 0)
    return folder


def seeded(*seeds):
    return [np.random.default_rng(seed) for seed in seeds]


def images(folder, table):
    return np.stack([np.array(Image.open(folder / path)) for path in table["path"]])


def test_the_layout_is_the_competitions(sample):
    train, test = pd.read_csv(sample / "train.csv"), pd.read_csv(sample / "test.csv")
    submission = pd.read_csv(sample / "sample_submission.csv")
    assert list(train.columns) == ["ID", "path", *gene_names()]
    assert list(test.columns) == ["ID", "path"]
    assert list(submission.columns) == ["ID", *gene_names()]
    assert list(submission["ID"]) == list(test["ID"])
    assert (len(train), len(test)) == (sum(TILES[:-1]), TILES[-1])
    assert (train["ID"].iloc[0], train["path"].iloc[0]) == ("TRAIN_0000", "./train/TRAIN_0000.png")
    assert (test["ID"].iloc[-1], test["path"].iloc[-1]) == ("TEST_0105", "./test/TEST_0105.png")
    for part, table in (("train", train), ("test", test)):
        assert images(sample, table).shape == (len(table), 64, 64, 3)
        assert len(list((sample / part).iterdir())) == len(table)


def test_the_truth_lies_apart_and_matches_the_rows(sample):
    train = pd.read_csv(sample / "train.csv")
    slides, truth = (pd.read_csv(sample / "truth" / f"{n}.csv") for n in ("train_slides", "test"))
    assert list(slides["ID"]) == list(train["ID"])
    assert sorted(slides["slide"].value_counts()) == sorted(TILES[:-1])
    assert list(truth["ID"]) == list(pd.read_csv(sample / "test.csv")["ID"])
    assert list(truth.columns) == ["ID", *gene_names()]
    assert (pd.read_csv(sample / "sample_submission.csv")[gene_names()] == 0).all(axis=None)


def test_rows_are_shuffled_across_slides(sample):
    slides = pd.read_csv(sample / "truth/train_slides.csv")["slide"].to_numpy()
    changes = (slides[1:] != slides[:-1]).mean()
    assert 0.5 < changes < 0.8  # two thirds when neighbours are independent


def test_values_look_log_normalised(sample):
    values = pd.read_csv(sample / "train.csv")[gene_names()]
    assert values.shape[1] == GENES == 60
    assert np.isfinite(values.to_numpy()).all()
    assert -0.01 < values.min(axis=None) < 0  # batch correction leaves small negative values
    assert 3 < values.max(axis=None) < 12
    spread = values.std()
    assert (spread < 0.1).sum() == 3  # the silent genes
    assert spread.min() > 0


def test_the_same_seed_writes_the_same_bytes(sample, tmp_path):
    write_sample(tmp_path / "same", 0)
    for name in ("train.csv", "truth/test.csv", "train/TRAIN_0007.png", "test/TEST_0007.png"):
        assert (tmp_path / "same" / name).read_bytes() == (sample / name).read_bytes()


def test_another_seed_draws_another_tile():
    tile = [draw_tile(rng, draw_tissue(rng, SLIDES[0]), SLIDES[0]) for rng in seeded(1, 1, 2)]
    assert np.array_equal(tile[0], tile[1])
    assert not np.array_equal(tile[0], tile[2])


def test_colour_explains_a_part_and_leaves_room_for_shapes(sample):
    train = pd.read_csv(sample / "train.csv")
    slides = pd.read_csv(sample / "truth/train_slides.csv")["slide"]
    fold_N = np.unique(slides, return_inverse=True)[1]
    true_TN = train[gene_names()].to_numpy(np.float32).T
    metric = get_metric("gene_expr").fit(true_TN)
    score = {
        name: mean_score(
            fold_scores(metric, oof(images(sample, train), true_TN, fold_N), true_TN, fold_N)
        )
        for name, oof in BASELINES.items()
    }
    assert score["colour_ridge"].value > score["mean_profile"].value + 0.2
    assert 0.3 < score["colour_ridge"].parts["mean_corr_genes"] < 0.55


def test_importing_the_sample_loads_nothing_heavy():
    code = (
        "import sys, spaces.samples.gene_expr; print({'numpy', 'pandas', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_training_beats_the_mean_profile_and_a_bad_learning_rate(sample):
    """Four epochs with a usual learning rate, against one that is far too small."""
    table = pd.read_csv(sample / "train.csv")
    slide_of = pd.read_csv(sample / "truth" / "train_slides.csv").set_index("ID")["slide"]
    slide_N = slide_of.loc[table["ID"]].to_numpy()
    targets_TN = table[gene_names()].to_numpy(dtype=np.float32).T
    valid, train = (np.flatnonzero(mask) for mask in (slide_N == slide_N[0], slide_N != slide_N[0]))
    metric = get_metric("gene_expr").fit(targets_TN)
    images_NHWC = images(sample, table)

    def score(lr):
        part = Regression(loss="mse_pearson_both")
        recipe = Recipe(backbone="test_resnet", lr=lr, epochs=4, batch_size=16, task=part)
        result = train_fold(
            FoldJob(recipe=recipe, images_NHWC=images_NHWC, targets_TN=targets_TN,
                    train_rows=train, valid_rows=valid)
        )  # fmt: skip
        return metric.score(result.pred_TV, targets_TN[:, valid]).value

    profile_TV = np.repeat(targets_TN[:, train].mean(axis=1, keepdims=True), len(valid), axis=1)
    usual = score(8e-3)
    assert usual > score(1e-6) + 0.2
    assert usual > metric.score(profile_TV, targets_TN[:, valid]).value + 0.3
