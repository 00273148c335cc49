"""Grad-CAM: what in a picture raises the best model's output for it (Selvaraju et al. 2017).

Each row by the model of its own fold, which did not see it. Feature maps are weighted by how much
the output grows with each of them, summed, and what lowers it is left out.

Shapes: X images, the views of one row, C channels, H W height and width, h w of the feature maps.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from search.report import forms
from search.report.errors import row_errors, what_happened
from search.report.facts import Facts, Nothing, Predictions
from search.report.markup import Html, el, join
from search.report.pictures import SIDE, Pictures, Pixels, card, coloured, gallery, picture
from search.report.targets import correlations, mean_correlations

if TYPE_CHECKING:
    from torch import Tensor

    from search.model.infer import FoldModel

EACH = 3  # worst and best rows
LEAST = 7  # positions on a side of a map that tells where
SECONDS = 10.0  # after which no further row is begun
# From low to high: from nothing over violet and orange to yellow, laid over the grey picture.
_HEAT = np.array([[40, 20, 90], [140, 40, 120], [225, 90, 60], [250, 170, 50], [255, 245, 160]])

Floats = NDArray[np.float32]


def body(facts: Facts) -> Html:
    """Raises Nothing where models or images are gone, and for networks without feature maps."""
    trial = facts.best
    if trial.recipe.get("probe", "none") != "none":
        raise Nothing(
            f"Trial {trial.number}, the best, is a probe: no gradient reaches its feature maps."
        )
    if trial.number not in facts.run.members():
        raise Nothing(f"The fold models of trial {trial.number}, the best, are gone.")
    found, pictures = facts.predictions, Pictures.open(facts)
    error_N = row_errors(facts.task_type, found.pred_TN, found.true_TN)
    order = np.argsort(error_N, kind="stable").tolist()
    best, worst = order[:EACH], order[EACH:][-EACH:][::-1]
    output = _output(facts, found)
    made = _overlays(facts, found, pictures, worst + best, output)
    parts: list[object] = [el("p", _explanation(facts, found, output))]
    for title, rows in (("Most wrong", worst), ("Most right", best)):
        cards = [
            card(
                [picture(made[row][0], f"row {found.folds.ids[row]}"),
                 picture(made[row][1], f"Grad-CAM of row {found.folds.ids[row]}")],
                el("strong", found.folds.ids[row]), f"error {error_N[row]:.3f}",
                what_happened(facts.task_type, found, row, output),
            )
            for row in rows if row in made
        ]  # fmt: skip
        parts += [el("h3", title), gallery(cards)] if cards else []
    if left_out := len(worst + best) - len(made):
        said = f"{forms.plural(left_out, 'row')} left out: {SECONDS:.0f} seconds were over."
        parts.append(el("p", said, class_="note"))
    return join(parts)


def _output(facts: Facts, found: Predictions) -> int | None:
    """For regression the target that is predicted best; None: what is true of each row."""
    if facts.task_type != "regression":
        return None
    mean_T = mean_correlations(correlations(found))
    return int(np.nan_to_num(mean_T, nan=-2.0).argmax())


def _explanation(facts: Facts, found: Predictions, output: int | None) -> str:
    what = "the label that is most wrong"
    if output is not None:
        what = f"{found.names[output]}, the target predicted best"
    elif facts.task_type == "multiclass":
        what = "the true class"
    return (
        f"By {facts.name(found.trial)}, each row by the fold model that did not see it. Bright is "
        f"what raises the output for {what}. It shows where the network looks, not whether it is "
        "right."
    )


def _overlays(
    facts: Facts, found: Predictions, pictures: Pictures, rows: list[int], output: int | None
) -> dict[int, tuple[Pixels, Pixels]]:
    """Row -> its picture, plain and laid over, for as many as the time suffices."""
    from search.model.infer import FoldModel

    by_fold: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        by_fold[int(found.fold_N[row])].append(row)
    made: dict[int, tuple[Pixels, Pixels]] = {}
    started = time.monotonic()
    for fold, inside in by_fold.items():
        model: FoldModel | None = None
        for row in inside:
            if time.monotonic() - started > SECONDS:
                return made
            if model is None:
                folder = facts.run.checkpoints(found.trial.number)
                model = FoldModel.load(folder / f"fold-{fold}.safetensors")
            chosen = _chosen(facts.task_type, found, row) if output is None else output
            made[row] = overlay(model, pictures, row, chosen)
    return made


def _chosen(task_type: str, found: Predictions, row: int) -> int:
    """The true class, or the label whose prediction is furthest from the truth."""
    true_T = np.asarray(found.true_TN[:, row])
    if task_type == "multiclass":
        return int(true_T.argmax())
    return int(np.abs(true_T - found.pred_TN[:, row]).argmax())


def overlay(model: "FoldModel", pictures: Pictures, row: int, output: int) -> tuple[Pixels, Pixels]:
    """(H, W, 3) of the view that matters most, plain and with what raises the output laid over."""
    views_XHWC = pictures.images_XHWC[row * pictures.views : (row + 1) * pictures.views]
    heat_Xhw, seen_XHWC = grad_cam(model, np.array(views_XHWC), output)
    view, top = int(heat_Xhw.sum(axis=(1, 2)).argmax()), max(float(heat_Xhw.max()), 1e-12)
    plain = np.asarray(Image.fromarray(coloured(seen_XHWC[view])).resize((SIDE, SIDE)))
    heat = Image.fromarray(np.uint8(255 * heat_Xhw[view] / top))
    heat_HW = np.asarray(heat.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / 255
    steps = np.linspace(0, 1, len(_HEAT))
    colour_HWC = np.stack([np.interp(heat_HW, steps, _HEAT[:, c]) for c in range(3)], axis=2)
    opaque_HW1 = (0.15 + 0.65 * heat_HW)[:, :, None]
    grey_HW1 = plain.mean(axis=2, keepdims=True)
    mixed_HWC = (1 - opaque_HW1) * grey_HW1 + opaque_HW1 * colour_HWC
    return plain, mixed_HWC.round().astype(np.uint8)


def grad_cam(model: "FoldModel", views_XHWC: Pixels, output: int) -> tuple[Floats, Pixels]:
    """(X, h, w) maps of one row's images, nowhere below 0, and the images that they lie over.

    Of the network's stages the last whose maps are at least LEAST positions wide: behind small
    images the last stage of all has one or two. Views that are stacked or laid side by side before
    the backbone are one image to it. Raises Nothing for a network that gives no feature maps.
    """
    import torch

    from search.data.batches import Batches

    network, recipe, facts = model.network, model.recipe, model.facts
    batches = Batches(
        views_XHWC, torch.empty(0), np.arange(1), recipe.image_size, facts["image.mean"].tolist(),
        facts["image.std"].tolist(), model.device, views=model.views,
        channels=len(facts["image.mean"]), normalise=recipe.normalise, stain=recipe.stain,
    )  # fmt: skip
    (images_XCHW,) = batches.ordered(1)
    with torch.enable_grad(), _kept(network.backbone) as kept:
        network(images_XCHW.requires_grad_())[0, output].backward()
    stages = [(_positions(network, m.detach()), _positions(network, m.grad)) for m in kept]
    found = [(m, s) for m, s in stages if m is not None and s is not None]
    if not found:
        raise Nothing(f"{recipe.backbone} gives no features that lie in a grid of positions.")
    # Behind a class token the last positions are not read: no gradient reaches them.
    found = [(m, s) for m, s in found if s.any()] or found
    wide = [stage for stage in found if min(stage[0].shape[1:3]) >= LEAST]
    maps_Xhwc, slope_Xhwc = wide[-1] if wide else max(found[::-1], key=lambda s: s[0].shape[1])
    weight_Xc = slope_Xhwc.mean(dim=(1, 2))
    heat_Xhw = torch.einsum("xhwc,xc->xhw", maps_Xhwc, weight_Xc).relu().cpu().numpy()
    return heat_Xhw, _seen(recipe.fusion, views_XHWC)


@contextmanager
def _kept(backbone: Any) -> Iterator["list[Tensor]"]:
    """Within it, a backbone's feature maps are kept with their gradients: those of its stages in
    their order, then what it gives at its end."""
    kept: list[Tensor] = []

    def keep(maps: Any) -> None:
        if hasattr(maps, "retain_grad") and maps.requires_grad:
            maps.retain_grad()
            kept.append(maps)

    forward = backbone.forward_features

    def keeping(images: "Tensor") -> Any:
        maps = forward(images)
        keep(maps)
        return maps

    stages = [info["module"] for info in getattr(backbone, "feature_info", ())]
    hooks = [
        backbone.get_submodule(name).register_forward_hook(lambda *given: keep(given[2]))
        for name in stages
    ]
    # timm calls it as a method, on which no hook can be set.
    backbone.forward_features = keeping
    try:
        yield kept
    finally:
        backbone.forward_features = forward
        for hook in hooks:
            hook.remove()


def _positions(network: Any, maps: "Tensor | None") -> "Tensor | None":
    """Feature maps of any layout as (X, h, w, C); None for what has no positions, and no
    gradient."""
    if maps is None:
        return None
    if maps.ndim == 4:
        return maps if network.layout == "nhwc" else maps.permute(0, 2, 3, 1)
    if maps.ndim == 3:
        tokens = maps[:, int(getattr(network.backbone, "num_prefix_tokens", 0)) :]
        side = round(tokens.shape[1] ** 0.5)
        if side * side == tokens.shape[1]:
            return tokens.unflatten(1, (side, side))
    return None


def _seen(fusion: str, views_XHWC: Pixels) -> Pixels:
    """The images that the maps lie over: the views, or what was made one of them."""
    if len(views_XHWC) == 1 or fusion not in ("stack", "grid"):
        return views_XHWC
    if fusion == "stack":
        return views_XHWC[:1]
    from search.model.views import grid_shape

    rows, _ = grid_shape(len(views_XHWC))
    lines = [np.concatenate(list(line), axis=1) for line in np.split(views_XHWC, rows)]
    return np.concatenate(lines, axis=0)[None]
