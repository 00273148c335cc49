"""A feature head: the features of the best members side by side, and one linear layer on them.

The breast-pathology write-up did this by hand with three to five models.

For fold k the layer reads what the fold-k models of two or three members see, and is fitted on the
rows outside fold k: as honest as the members themselves. Those rows are the ones that the networks
were trained on, so the strength of the penalty cannot be chosen among them; they look too easy.
Strength and members of fold k are chosen by what such layers score on each other fold j, from
fold-j models, fitted without the rows of both j and k. With two folds nothing is left to fit on,
and the middle strength and the two best are taken.

Shapes: T outputs, N train rows, S test rows, V rows of one fold, F features.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble.bench import Bench
from ensemble.derived.feature_store import FeatureStore
from ensemble.derived.linear import fit_layers, strengths
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
from ensemble.joint import JointLayer
from ensemble.limits import Cost
from ensemble.members import Member, Pool
from ensemble.meter import Tell, silent
from search.oof import save_rows
from search.run_folder import RunFolder

SIZES = (2, 3)  # members whose features are joined
Set = tuple[int, ...]  # indices of the pool's members


def make_feature_heads(
    pool: Pool, run: RunFolder, tell: Tell = silent
) -> tuple[list[Member], list[str]]:
    """The run's feature head, and why none was made.

    It lies in RUN/derived/head and is used again while nothing it depends on has changed; features
    lie in RUN/derived/features. Raises UserError when the run's images are gone.
    """
    own, notes = sources(pool, run)
    if len(own.members) < min(SIZES):
        notes.append(
            f"no feature head: it joins {min(SIZES)} members and {len(own.members)} have models"
        )
        return [], notes
    folder = run.derived("head")
    given = inputs(own, run, "head")
    kept = read_kept(folder, given)
    if kept is None:
        drop_kept(folder)
        head = _Head(own, FeatureStore(own, run))
        if head.twins:
            notes.append("no feature head: all members are twins of the best")
            return [], notes
        chosen = head.write(folder, tell)
        names = [[own.members[m].name for m in members] for members, _ in chosen]
        kept = {"members": names, "strengths": [strength for _, strength in chosen]}
        write_kept(folder, given, kept)
    tell(own.folds, own.folds, "features done")
    return [_derived(own, folder, kept["members"], kept["strengths"])], notes


class _Head:
    """Choosing and fitting the layers of all folds."""

    def __init__(self, pool: Pool, store: FeatureStore) -> None:
        self.pool, self.store = pool, store
        self.bench = Bench(pool)
        self._sets = [self._candidates(k) for k in self.folds]

    @property
    def folds(self) -> range:
        return range(self.pool.folds)

    @property
    def twins(self) -> bool:
        """Whether some fold has no two members that differ."""
        return any(not sets for sets in self._sets)

    def write(self, folder: Path, tell: Tell) -> list[tuple[Set, float]]:
        """Write the layers and what they predict; members and strength of each fold."""
        pool = self.pool
        chosen = []
        for fold in self.folds:
            tell(fold, pool.folds, f"feature head of fold {fold}")
            chosen.append(self._choose(fold))
        parts = sorted({m for members, _ in chosen for m in members})
        pred_TN = np.empty(pool.true_TN.shape, dtype=np.float32)
        test_SHWC = self.store.images[1]
        tests = []
        for fold, (members, strength) in enumerate(chosen):
            (layer,) = self._fit(members, fold, [fold], [strength], parts)
            layer.save(folder / f"fold-{fold}.safetensors")
            rows_V = fold_rows(pool, fold)
            pred_TN[:, rows_V] = layer.apply(self.store.train(members, fold)[rows_V]).T
            if test_SHWC is not None:
                tests.append(layer.apply(self.store.test(members, fold)))
        save_rows(folder / "pred.npy", pred_TN)
        if tests:
            save_rows(folder / "test.npy", np.asarray(np.mean(tests, axis=0, dtype=np.float64)).T)
        return chosen

    def _candidates(self, fold: int) -> list[Set]:
        """The best members by the other folds, without twins of better ones: the first two, the
        first three."""
        others = [k for k in self.folds if k != fold]
        kept = self.bench.candidates(others)
        return [tuple(kept[:size]) for size in SIZES if size <= len(kept)]

    def _choose(self, fold: int) -> tuple[Set, float]:
        """Members and strength for a fold, by scores on the others; of equal ones the fewer
        members and the stronger penalty."""
        others = [k for k in self.folds if k != fold]
        use = strengths(self.pool.task_type)
        if len(others) < 2:
            return self._sets[fold][0], use[len(use) // 2]
        found = []
        for members in self._sets[fold]:
            preds: list[dict[int, NDArray[np.float32]]] = [{} for _ in use]
            for other in others:
                features_VF = self.store.train(members, other)[fold_rows(self.pool, other)]
                layers = self._fit(members, other, [other, fold], use, members)
                for pred, layer in zip(preds, layers, strict=True):
                    pred[other] = layer.apply(features_VF).T
            scores = (score_of(self.pool, pred) for pred in preds)
            found += [(score, members, s) for score, s in zip(scores, use, strict=True)]
        best = max(found, key=lambda one: one[0])
        return best[1], best[2]

    def _fit(
        self,
        members: Set,
        fold: int,
        without: Sequence[int],
        use: Sequence[float],
        parts: Sequence[int],
    ) -> list[JointLayer]:
        """Layers on the features of this fold's models, fitted on the rows outside `without`."""
        rows_N = np.flatnonzero(~np.isin(self.pool.fold_N, list(without)))
        return fit_layers(
            self.store.train(members, fold)[rows_N],
            self.pool.true_TN[:, rows_N],
            self.pool.task_type,
            use,
            tuple(list(parts).index(m) for m in members),
        )


def _derived(
    pool: Pool, folder: Path, names: Sequence[Sequence[str]], used: Sequence[float]
) -> Member:
    number_of = {member.name: m for m, member in enumerate(pool.members)}
    sets = [[number_of[name] for name in fold] for fold in names]
    parts = sorted({m for members in sets for m in members})
    files = list(folder.glob("fold-*.safetensors"))
    files += [model_file(pool.members[m], k) for k, members in enumerate(sets) for m in members]
    costs = [[pool.members[m].cost.ms for m in members] for members in sets]
    known = [[ms for ms in fold if ms is not None] for fold in costs]
    joined = "+".join(pool.members[m].name for m in parts)
    alike = len({tuple(sorted(members)) for members in sets}) == 1
    each = "; ".join(
        f"fold {k}: {'+'.join(members)} with {strength:g}"
        for k, (members, strength) in enumerate(zip(names, used, strict=True))
    )
    return Member(
        name=f"features {joined}" if alike else "features",
        pred_TN=load_rows(folder / "pred.npy"),
        parts=tuple(part(pool.members[m]) for m in parts),
        layer=folder,
        oof_folder=folder,
        cost=Cost(
            family="features",
            mb=sum(path.stat().st_size for path in files) / 2**20,
            ms=float(np.mean([sum(fold) for fold in known])) if known == costs else None,
        ),
        note="a linear layer on joined features; each fold's members and penalty were chosen on "
        f"the other folds: {each}",
    )
