"""Finished runs with real fold models, made without training.

Images are tiles of one colour and targets follow it. The base of every trial is one network of
random weights whose last layer was fitted by ridge; a trial is the base with something done to its
weights. Shapes: T outputs, N rows, F features.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ensemble.derived.linear import fit_layers
from ensemble.submission import SubmissionForm
from search.data.cache import open_store
from search.data.cleaning import NOTHING
from search.data.folds import make_folds, write_folds
from search.metrics import get_metric
from search.model.backbone import build_model
from search.model.facts import model_facts
from search.model.infer import FoldModel, save_model
from search.model.links import link_of
from search.oof import write_oof
from search.run_folder import RunFolder, write_json
from spaces.layout import Layout
from spaces.recipe import Recipe

NAMES = ("A", "B", "C")
ROWS, TESTS, FOLDS, SIZE = 36, 4, 3, 32
Weights = dict[str, Tensor]


def make_images(root: Path, rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
    """Paths of the images below `root`, train rows first, and the train rows' targets (T, N)."""
    colours = rng.integers(40, 216, (ROWS + TESTS, 3))
    (root / "tiles").mkdir(parents=True)
    paths = [f"tiles/{i:02d}.png" for i in range(ROWS + TESTS)]
    for path, colour in zip(paths, colours, strict=True):
        pixels = np.clip(colour + rng.integers(-20, 20, (SIZE, SIZE, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(root / path)
    values_NT = (colours[:ROWS] / 64.0) @ rng.normal(size=(3, len(NAMES)))
    return paths, np.ascontiguousarray(values_NT.T, dtype=np.float32)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Tiny models gain nothing from threads, and lose much where tests share a machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class ModelRun:
    """A run that gets a trial for each call of `add`."""

    def __init__(
        self,
        root: Path,
        task_type: str = "regression",
        metric: str = "rmse",
        folds: int = FOLDS,
        views: int = 1,  # of the same image
        **arguments: Any,
    ) -> None:
        self.run = RunFolder(root / "run")
        paths, true_TN = make_images(root / "data", np.random.default_rng(0))
        if task_type == "multiclass":
            true_TN = np.float32(np.arange(len(true_TN))[:, None] == true_TN.argmax(axis=0))
        elif task_type != "regression":
            true_TN = np.float32(true_TN > np.median(true_TN, axis=1, keepdims=True))
        self.true_TN, self.task_type, self.views = true_TN, task_type, views
        ids = [f"R{i:02d}" for i in range(ROWS + TESTS)]
        self.fold_N = make_folds(ids[:ROWS], None, folds, 0)
        self.folds = write_folds(self.run.folds, ids[:ROWS], None, self.fold_N)
        np.save(self.run.targets, true_TN)
        tests = tuple(ids[ROWS:])
        form = SubmissionForm(target_names=NAMES, test_ids=tests, ids=tests, columns=("ID", *NAMES))
        form.save(self.run.form)
        files = [(path,) for path in paths for _ in range(views)]
        store = open_store(root / "data", files, SIZE, root / "cache")
        self.store, self.images_NHWC = store.folder, store.images_NHWC
        self.facts = {
            "task": "made",
            "task_type": task_type,
            "metric": get_metric(metric, **arguments).fit(true_TN).to_dict(),
            "target_names": NAMES,
            "layout": dataclasses.asdict(Layout(image_columns=("path",) * views)),
            "clean": NOTHING,
            "plan": {"store_size": SIZE},
            "data": str(root / "data"),
            "store": str(store.folder),
        }
        write_json(self.run.run, self.facts)
        self.trials = 0

    def add(
        self, change: Callable[[Weights, torch.Generator], None] | None = None, **fields: Any
    ) -> int:
        """A trial whose fold models are the base with `change` done to each; its number."""
        number, self.trials = self.trials, self.trials + 1
        given = {"backbone": "test_vit", "weights": "pretrained", "image_size": SIZE, **fields}
        recipe = Recipe(**given)
        pred_TN = np.empty_like(self.true_TN)
        for fold in range(self.folds.k):
            rows = np.flatnonzero(self.fold_N == fold)
            path = self.run.checkpoints(number) / f"fold-{fold}.safetensors"
            state = base(recipe, fold, self.views)
            if recipe.head == "linear":
                self._fit_head(state, recipe, fold)
            if change:
                change(state, torch.Generator().manual_seed(100 * number + fold))
            link = link_of(self.task_type)
            save_model(path, state, recipe.to_dict(), len(NAMES), views=self.views, link=link)
            pred_TN[:, rows] = FoldModel.load(path).predict(self.images_NHWC, rows=rows).T
        facts = {"recipe": recipe.to_dict(), "predict_ms": 2.0}
        write_json(self.run.checkpoints(number) / "recipe.json", facts)
        write_oof(
            self.run.oof(number), pred_TN, folds=self.folds, target_names=NAMES,
            recipe_digest=recipe.digest, extra={},
        )  # fmt: skip
        return number

    def _fit_head(self, state: Weights, recipe: Recipe, fold: int) -> None:
        network = build_model(recipe, len(NAMES), pretrained=False, views=self.views)
        network.load_state_dict({n: t for n, t in state.items() if "." in n and n not in _FACTS})
        facts = {name: state[name] for name in _FACTS}
        train = np.flatnonzero(self.fold_N != fold)
        model = FoldModel(network, facts, recipe, views=self.views)
        features_NF = model.features(self.images_NHWC, rows=train)
        true_TN = self.true_TN[:, train]
        (layer,) = fit_layers(features_NF, true_TN, "regression", [0.3], (0,))
        state["head.1.weight"] = torch.from_numpy(layer.weight_TF.copy())
        state["head.1.bias"] = torch.from_numpy(layer.bias_T.astype(np.float32))


_FACTS = ("target.mean", "target.std", "image.mean", "image.std")


def base(recipe: Recipe, fold: int, views: int = 1) -> Weights:
    """Weights and facts of an untrained network; the same for every trial of a recipe."""
    torch.manual_seed(fold)
    facts = model_facts(recipe.backbone)
    network = build_model(recipe, len(NAMES), pretrained=False, views=views)
    state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    return {
        **state,
        "target.mean": torch.zeros(len(NAMES)),
        "target.std": torch.ones(len(NAMES)),
        "image.mean": torch.tensor(facts.mean),
        "image.std": torch.tensor(facts.std),
    }


def noisy(size: float) -> Callable[[Weights, torch.Generator], None]:
    """Adds noise to the last layer: two such trials are better together."""

    def change(state: Weights, generator: torch.Generator) -> None:
        weight = state["head.1.weight"]
        noise = torch.randn(weight.shape, generator=generator)
        state["head.1.weight"] = weight + size * weight.std() * noise

    return change
