"""A small trained run and its bundle: three trials of timm's test_resnet, three folds.

Shapes: m members, T outputs, N rows, Q quantiles.
"""

import csv
import dataclasses
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from ensemble.blend import Blend, Post
from ensemble.export import export
from ensemble.members import load_members
from ensemble.submission import SubmissionForm
from search.data.cleaning import NOTHING
from search.data.decode import decode
from search.data.folds import make_folds, write_folds
from search.metrics import get_metric
from search.oof import assemble, read_test, write_fold
from search.run_folder import RunFolder, write_json
from search.train.fold import FoldJob, save_fold, train_fold
from spaces.layout import Layout
from spaces.recipe import Recipe

NAMES = ("GENE1", "GENE2", "GENE3")
TRAIN, TEST, STORE = 36, 7, 40
LAYOUT = Layout()
REPO = Path(__file__).resolve().parent.parent


def write_csv(path, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)


def write_data(root, rng):
    """Tiles of differing colour, and the competition's three CSVs, the sample in another order."""
    (root / "tiles").mkdir(parents=True)
    colours = rng.integers(40, 216, (TRAIN + TEST, 1, 1, 3))
    images = (colours + rng.integers(-30, 30, (TRAIN + TEST, 48, 48, 3))).astype(np.uint8)
    names = [f"R_{i:02d}" for i in range(TRAIN + TEST)]
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image).save(root / "tiles" / f"{name}.png")
    targets_NT = colours.reshape(-1, 3) / 64.0
    paths = [f"./tiles/{name}.png" for name in names]
    rows = list(zip(names, paths, strict=True))
    write_csv(root / "test.csv", [("ID", "path"), *rows[TRAIN:]])
    truth = [[n, *map(float, t)] for n, t in zip(names, targets_NT, strict=True)][TRAIN:]
    write_csv(root / "truth.csv", [("ID", *NAMES), *truth])
    order = [(name, 0, 0, 0) for name in reversed(names[TRAIN:])]
    write_csv(root / "sample_submission.csv", [("ID", "GENE3", "GENE1", "GENE2"), *order])
    return names, paths, np.ascontiguousarray(targets_NT.T, dtype=np.float32)


def train_run(root):
    """A run as search.run leaves it, with its data folder, below `root`."""
    names, paths, targets_TN = write_data(root / "data", np.random.default_rng(0))
    run = RunFolder(root / "run")
    fold_N = make_folds(names[:TRAIN], None, 3, 0)
    folds = write_folds(run.folds, names[:TRAIN], None, fold_N)
    np.save(run.targets, targets_TN[:, :TRAIN])
    SubmissionForm(
        target_names=NAMES,
        test_ids=tuple(names[TRAIN:]),
        ids=tuple(reversed(names[TRAIN:])),
        columns=("ID", "GENE3", "GENE1", "GENE2"),
    ).save(run.form)
    metric = get_metric("gene_expr", heg_n=2, hvg_n=2).fit(targets_TN[:, :TRAIN])
    write_json(
        run.run,
        {
            "task": "gene_expr",
            "task_type": "regression",
            "metric": metric.to_dict(),
            "target_names": NAMES,
            "layout": dataclasses.asdict(LAYOUT),
            "clean": NOTHING,
            "plan": {"store_size": STORE},
        },
    )
    images_NHWC = np.stack([decode(root / "data" / path, STORE) for path in paths])
    # The sizes differ from the store's and from each other, and one recipe has its own TTA.
    for trial, (size, tta) in enumerate([(32, 4), (48, 1), (32, 1)]):
        recipe = Recipe(
            backbone="test_resnet", weights="random", image_size=size, epochs=2, batch_size=8,
            tta=tta, seed=trial,
        )  # fmt: skip
        for k in range(3):
            result = train_fold(
                FoldJob(
                    recipe=recipe,
                    images_NHWC=images_NHWC[:TRAIN],
                    targets_TN=targets_TN[:, :TRAIN],
                    train_rows=np.flatnonzero(fold_N != k),
                    valid_rows=np.flatnonzero(fold_N == k),
                    test_images_NHWC=images_NHWC[TRAIN:],
                    seed=k,
                )
            )
            save_fold(run.checkpoints(trial) / f"fold-{k}.safetensors", result, recipe)
            write_fold(run.oof(trial), k, result.pred_TV, result.test_pred_TS)
        write_json(run.checkpoints(trial) / "recipe.json", {"recipe": recipe.to_dict()})
        assemble(
            run.oof(trial), folds=folds, target_names=NAMES, recipe_digest=recipe.digest, extra={}
        )
    return SimpleNamespace(run=run, data=root / "data", folds=folds, images_NHWC=images_NHWC)


WEIGHTS = (0.75, 0.25)  # of trials 1 and 0; trial 2 has none


def make_blend(**changes):
    """A mean of trials 1 and 0 as a combiner gives it, or something else of the two."""
    given = {
        "method": "greedy", "task_type": "regression", "members": (1, 0), "weights": WEIGHTS,
    }  # fmt: skip
    return Blend(**{**given, **changes})


def make_report(pool, blend):
    """What ensemble/report.py gives, as far as a bundle reads it."""
    used = zip(blend.members, blend.weights, strict=True)
    return {
        "metric": pool.metric.label,
        "scores": [
            {"name": "ensemble, OOF", "kind": "optimistic: on the same rows", "score": 0.75},
            {"name": "ensemble, nested", "kind": "nested", "score": 0.5, "standard_error": 0.01},
        ],
        "members": [
            {"name": pool.members[m].name, "weight": w, "score": 0.25 + m} for m, w in used
        ],
    }


def export_blend(run, out, blend=None):
    """The bundle of a blend of the run's members, in the columns of its submission."""
    pool, blend = load_members(run), blend or make_blend()
    columns = SubmissionForm.load(run.form).columns
    return export(pool, blend, make_report(pool, blend), columns, out)


def write_submission(run, blend):
    """RUN/submission.csv from the predictions that training kept; its path."""
    form = SubmissionForm.load(run.form)
    shape = len(form.target_names), len(form.test_ids)
    path = run.root / LAYOUT.submission.file
    form.write(path, blend.apply([read_test(run.oof(m), *shape) for m in blend.members]))
    return path


def build_run(trained, root):
    """A copy of the run at `root`, with its ensemble and its submission."""
    shutil.copytree(trained.run.root, root)
    run = RunFolder(root)
    export_blend(run, run.ensemble)
    submission = write_submission(run, make_blend())
    return SimpleNamespace(**{**vars(trained), "run": run, "submission": submission})


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def numbers(path):
    return np.array([[float(value) for value in row[1:]] for row in read_csv(path)[1:]])


def spoil(path):
    """Change one bit and leave length and time as they were."""
    data, stat = bytearray(path.read_bytes()), path.stat()
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


QUANTILES_mTQ = np.sort(np.random.default_rng(3).uniform(-1, 4, (2, 3, 9)), axis=2)
COEF_mT = np.array([[0.5, 1.0, -0.25], [0.0, 2.0, 0.125]])
KINDS = {
    "mean": {},
    "one": {"members": (2,), "weights": (1.0,)},
    "coefficients": {"coef_mT": COEF_mT, "intercept_T": np.array([0.5, -1.0, 0.0])},
    "median": {"reduce": "median"},
    "ranks": {"transform": "rank", "quantiles_mTQ": QUANTILES_mTQ},
    "logits": {"transform": "logit", "link": "sigmoid", "task_type": "multilabel"},
    "votes": {"transform": "vote", "task_type": "multiclass"},
    "classes": {
        "transform": "log", "link": "softmax", "task_type": "multiclass",
        "post": Post(temperature=1.5),
    },
    "shrunk": {"post": Post(shrink=0.5, mean_T=np.array([1.0, 2.0, 3.0]))},
    "thresholds": {"post": Post(thresholds_T=np.array([0.25, 0.5, 0.75]))},
}  # fmt: skip
