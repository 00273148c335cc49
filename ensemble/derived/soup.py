"""Greedy model soups: the mean of the weights of trials that began alike.

Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned models improves
accuracy without increasing inference time" (arXiv:2203.05482): models fine-tuned from the same
weights often lie in one basin, and the mean of their weights predicts like an ensemble at the price
of one model.

Only pretrained backbones qualify: with random weights every trial starts elsewhere. Heads start
apart, too, since each trial draws its own: the last layer from N(0, 0.01), near enough to zero to
be the same start. The hidden layer of an "mlp" head and a learned fusion of views start at full
size, so that their units have no counterparts in another trial, and these do not qualify.
BatchNorm's running statistics are averaged like weights, not measured anew. Where any of this
breaks a soup its score drops, and the ingredient is left out.

Fold models are averaged fold by fold. What goes into fold k's soup is chosen by out-of-fold
predictions on the other folds, so that the soup's prediction of fold k, as any member's, knows
nothing of that fold's truth. (What it predicts for the other folds was chosen with that truth, as
the models that predict them were trained with it.)

Shapes: T outputs, N train rows, S test rows, H W C height, width and channels, V rows of one fold.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ensemble.bench import Bench
from ensemble.derived.images import Images, run_images
from ensemble.derived.kin import kin
from ensemble.derived.sources import (
    drop_kept,
    fold_rows,
    inputs,
    load_rows,
    model_file,
    part,
    read_kept,
    score_of,
    sources,
    write_kept,
)
from ensemble.engines.base import tie
from ensemble.limits import Cost
from ensemble.members import Member, Part, Pool
from ensemble.meter import Tell, silent
from search.data.disk import need_space
from search.oof import save_rows
from search.run_folder import RunFolder

if TYPE_CHECKING:
    from search.model.infer import FoldModel

Set = tuple[int, ...]  # ingredients: indices of the pool's members, ascending


def make_soups(pool: Pool, run: RunFolder, tell: Tell = silent) -> tuple[list[Member], list[str]]:
    """A soup of each group of two or more members that fit together, and why others were not made.

    They lie in RUN/derived/soup-N and are used again while nothing they depend on has changed.
    Raises UserError when the run's images are gone.
    """
    own, notes = sources(pool, run)
    groups, reasons = kin(own)
    notes += reasons
    made = []
    for number, group in enumerate(groups, start=1):
        names = "+".join(own.members[m].name for m in group)

        def step(fold: int, number: int = number, names: str = names) -> None:
            done, steps = (number - 1) * own.folds + fold, len(groups) * own.folds
            tell(done, steps, f"soup of {names}")

        soup = _Soup(own, run, group, run.derived(f"soup-{number}"))
        chosen = soup.make(step)
        if all(len(ingredients) == 1 for ingredients in chosen):
            notes.append(f"soup of {names}: no second ingredient kept the score in any fold")
        else:
            made.append(soup.derived(number, chosen))
    if groups:
        tell(len(groups) * own.folds, len(groups) * own.folds, "soups done")
    return made, notes


def choose_ingredients(order: Sequence[int], score: Callable[[Set], float]) -> Set:
    """The greedy recipe: begin with the first, then add each next one with which the score does
    not drop."""
    chosen: Set = (order[0],)
    best = score(chosen)
    for member in order[1:]:
        tried = tuple(sorted((*chosen, member)))
        if (found := score(tried)) >= best - tie(best):
            chosen, best = tried, max(best, found)
    return chosen


def average_models(files: Sequence[Path], out: Path, recipe: dict[str, Any]) -> None:
    """Write the mean of fold models that agree in names, shapes and facts: of floating tensors,
    in float64 and rounded to their own type; counters are those of the first."""
    import torch

    from search.model.infer import FACTS, read_model, save_model

    first, metadata = read_model(files[0])
    averaged = [n for n, t in first.items() if torch.is_floating_point(t) and n not in FACTS]
    sums = {name: first[name].double() for name in averaged}
    for path in files[1:]:
        tensors, _ = read_model(path)
        for name in averaged:
            sums[name] += tensors[name]
    means = {name: (sums[name] / len(files)).to(first[name].dtype) for name in averaged}
    save_model(
        out,
        {**first, **means},
        recipe,
        int(metadata["outputs"]),
        channels=int(metadata["channels"]),
        views=int(metadata["views"]),
        link=metadata["link"],
    )


class _Soup:
    """One group: its soups' predictions, each inferred at most once, and its folder."""

    def __init__(self, pool: Pool, run: RunFolder, group: Sequence[int], folder: Path) -> None:
        self.pool, self.run, self.group, self.folder = pool, run, tuple(group), folder
        first = part(pool.members[group[0]])
        # Flips and turns may differ between trials. All are used that any trial used: a rule that
        # looks at no score.
        turns = max(int(part(pool.members[m]).recipe.get("tta", 1)) for m in group)
        self.recipe = {**first.recipe, "tta": turns}
        self.decode_size = first.decode_size
        self._preds: dict[tuple[int, Set], NDArray[np.float32]] = {}
        self._scratch = folder  # a temporary folder while it is made

    def make(self, step: Callable[[int], None]) -> list[Set]:
        """The ingredients of each fold, the files in the folder; from an earlier build if it had
        the same inputs."""
        members = [self.pool.members[m] for m in self.group]
        given = inputs(replace(self.pool, members=tuple(members)), self.run, "soup")
        number_of = {member.name: m for member, m in zip(members, self.group, strict=True)}
        kept = read_kept(self.folder, given)
        if kept is not None:
            return [tuple(number_of[name] for name in names) for names in kept["ingredients"]]
        drop_kept(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        size = sum(model_file(members[0], k).stat().st_size for k in range(self.pool.folds))
        need_space(self.folder, size, f"the soup {self.folder.name}")
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".") as scratch:
            self._scratch = Path(scratch)
            chosen = self._choose(step)
            self._preds.clear()
        names_of = [[self.pool.members[m].name for m in ingredients] for ingredients in chosen]
        write_kept(self.folder, given, {"ingredients": names_of})
        return chosen

    def _choose(self, step: Callable[[int], None]) -> list[Set]:
        folds = range(self.pool.folds)
        chosen = []
        bench = Bench(self.pool)
        for fold in folds:
            step(fold)
            others = [k for k in folds if k != fold]
            order = [m for m in bench.ranked(others) if m in self.group]
            chosen.append(choose_ingredients(order, partial(self._score, others)))
        if any(len(ingredients) > 1 for ingredients in chosen):
            self._write(chosen)
        return chosen

    def _score(self, folds: Sequence[int], ingredients: Set) -> float:
        preds = {k: self._predict(k, ingredients) for k in folds}
        # Far apart enough, models average to one that overflows.
        if not all(np.isfinite(pred_TV).all() for pred_TV in preds.values()):
            return -np.inf
        return score_of(self.pool, preds)

    def _predict(self, fold: int, ingredients: Set) -> NDArray[np.float32]:
        """(T, V) predictions of a fold's own rows by its soup. They are kept on disk: a hundred
        megabytes for each set of ingredients, where there are thousands of outputs."""
        key = fold, ingredients
        if key not in self._preds:
            rows_V = fold_rows(self.pool, fold)
            alone = self.pool.members[ingredients[0]]
            if len(ingredients) == 1 and part(alone).recipe.get("tta", 1) == self.recipe["tta"]:
                pred_TV = np.asarray(alone.pred_TN[:, rows_V])
            else:
                path = self._scratch / "soup.safetensors"
                model = self._model(fold, ingredients, path)
                pred_TV = model.predict(self.images[0], rows=rows_V).T
                path.unlink()
            kept = self._scratch / f"{fold}-{'-'.join(map(str, ingredients))}.npy"
            np.save(kept, np.ascontiguousarray(pred_TV))
            self._preds[key] = np.load(kept, mmap_mode="r", allow_pickle=False)
        return self._preds[key]

    def _model(self, fold: int, ingredients: Set, path: Path) -> "FoldModel":
        """The soup of a fold's models, written to `path`."""
        from search.model.infer import FoldModel, fastest_device

        files = [model_file(self.pool.members[m], fold) for m in ingredients]
        average_models(files, path, self.recipe)
        return FoldModel.load(path, fastest_device())

    def _write(self, chosen: Sequence[Set]) -> None:
        """fold-K.safetensors, pred.npy and, where there are test images, test.npy."""
        pred_TN = np.empty(self.pool.true_TN.shape, dtype=np.float32)
        test_SHWC = self.images[1]
        tests = []
        for fold, ingredients in enumerate(chosen):
            pred_TN[:, fold_rows(self.pool, fold)] = self._predict(fold, ingredients)
            model = self._model(fold, ingredients, self.folder / f"fold-{fold}.safetensors")
            if test_SHWC is not None:
                tests.append(model.predict(test_SHWC))
        save_rows(self.folder / "pred.npy", pred_TN)
        if tests:
            save_rows(
                self.folder / "test.npy", np.asarray(np.mean(tests, axis=0, dtype=np.float64)).T
            )

    @cached_property
    def images(self) -> tuple[Images, Images | None]:
        return run_images(self.run)

    def derived(self, number: int, chosen: Sequence[Set]) -> Member:
        members = self.pool.members
        name_of = {s: "+".join(members[m].name for m in s) for s in chosen}
        alike = len(name_of) == 1
        models = sorted(self.folder.glob("fold-*.safetensors"))
        times = [members[m].cost.ms for m in sorted(set().union(*chosen))]
        known = [ms for ms in times if ms is not None]
        per_fold = "; ".join(f"fold {k}: {name_of[s]}" for k, s in enumerate(chosen))
        return Member(
            name=f"soup {name_of[chosen[0]]}" if alike else f"soup {number}",
            pred_TN=load_rows(self.folder / "pred.npy"),
            parts=(Part(folder=self.folder, recipe=self.recipe, decode_size=self.decode_size),),
            oof_folder=self.folder,
            cost=Cost(
                family="soup",
                mb=sum(path.stat().st_size for path in models) / 2**20,
                ms=max(known) if len(known) == len(times) else None,
            ),
            note="greedy soup, the mean of weights; each fold's ingredients were chosen on the "
            f"other folds: {name_of[chosen[0]] + ' in all' if alike else per_fold}",
        )
