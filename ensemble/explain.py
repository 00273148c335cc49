"""What a bundle is, in words: for `--explain` and for its README. Knows only what lies in it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ensemble.bundle import REPORT, REQUIREMENTS
from search.run_folder import read_json

if TYPE_CHECKING:
    from ensemble.blend import Blend
    from ensemble.bundle import Bundle
    from spaces.layout import Layout

_NAMES = 5  # targets named one by one

_TRANSFORMS = {
    "logit": "logits of each member's probabilities",
    "log": "logarithms of each member's probabilities",
    "rank": "each member's values as ranks (the share of its out-of-fold values below)",
    "vote": "each member's votes (0 or 1)",
}
_LINKS = {
    "sigmoid": "then through the sigmoid",
    "softmax": "then through the softmax",
    "normalise": "then divided by the sum over the classes",
    "sigmoid_normalise": "then through the sigmoid and divided by the sum over the classes",
}


def explain(bundle: "Bundle") -> str:
    """Several lines: task, formula, members, scores, input, size, requirements."""
    report = read_json(bundle.root / REPORT)
    layout = bundle.layout
    size = sum(path.stat().st_size for path in bundle.root.rglob("*") if path.is_file())
    needs = (bundle.root / REQUIREMENTS).read_text(encoding="utf-8").split()
    lines = [
        f"bundle    {bundle.root}, {size / 2**20:.1f} MB, no file was changed",
        f"task      {bundle.task} ({bundle.task_type})",
        f"targets   {targets(bundle.target_names)}",
        f"method    {bundle.blend.method}: {formula(bundle.blend)}",
        *(f"after     {step}" for step in after(bundle.blend, bundle.target_names)),
        f"input     {input_text(layout)}",
        f"output    {output_text(layout, bundle.task_type)}",
        f"needs     {' '.join(needs)}",
        "",
        *table(member_rows(bundle, report)),
        "",
        f"scores ({report['metric']}, higher is better)",
        *table([[r["name"], score_text(r), r["kind"]] for r in report["scores"]]),
    ]
    return "\n".join(lines)


def input_text(layout: "Layout") -> str:
    """Where a folder's test rows and images are looked for."""
    text = f"`{layout.test}`"
    if layout.image_columns:
        columns = ", ".join(f"`{name}`" for name in (layout.id_column, *layout.image_columns))
        text += f" with the columns {columns} (image files, relative to the folder)"
    else:
        text += f", a row's images as `{layout.test_images[0]}`"
        for name in ("views", "channels"):
            if values := getattr(layout, name):
                text += f", {name} {' '.join(values)}"
    if layout.sample_submission:
        text += f"; the order of `{layout.sample_submission}`, where there is one"
    return text


def output_text(layout: "Layout", task_type: str) -> str:
    """What a submission holds."""
    submission = layout.submission
    if submission.form == "cells":
        return "a CSV with confidences of every class for one mask of the whole image"
    if submission.form == "lines":
        return f"lines of {layout.id_column} and decision, separated by a blank"
    if layout.label_column and submission.decided == "all":
        return f"a CSV with {layout.id_column} and {layout.label_column}"
    values = "values" if task_type == "regression" else "probabilities"
    kind = {"none": values, "all": "decisions", "rest": f"{values}, decisions after the first"}
    return f"a CSV with {layout.id_column} and one column per target: {kind[submission.decided]}"


def targets(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMES])
    return f"{len(names)}: {shown}{', ...' if len(names) > _NAMES else ''}"


def formula(blend: "Blend") -> str:
    """How the members' predictions become one."""
    what = _TRANSFORMS.get(blend.transform, "members' predictions")
    if blend.reduce == "median":
        text = f"the median of {what}"
    elif blend.coef_mT is None:
        text = f"the weighted mean of {what}"
    elif blend.coef_mT.shape[1] > 1:
        text = f"the sum of {what}, each times a coefficient per output"
    else:
        text = f"the sum of {what}, each times a coefficient"
    if blend.intercept_T is not None:
        text += ", plus an intercept per output"
    return f"{text}, {_LINKS[blend.link]}" if blend.link in _LINKS else text


def after(blend: "Blend", target_names: Sequence[str]) -> list[str]:
    """What is done to the blended predictions, a sentence each."""
    post, steps = blend.post, []
    if post.temperature != 1.0:
        steps.append(f"the logits are divided by the temperature {post.temperature:.4g}")
    if post.mean_T is not None:
        steps.append(f"distances from each output's mean are multiplied by {post.shrink:.4g}")
    if post.thresholds_T is not None:
        pairs = list(zip(target_names, post.thresholds_T.tolist(), strict=True))
        shown = ", ".join(f"{name} {value:.4g}" for name, value in pairs[:_NAMES])
        more = f" and {len(pairs) - _NAMES} more" if len(pairs) > _NAMES else ""
        steps.append(f"positive is what reaches the threshold: {shown}{more}; no value is changed")
    return steps


def member_rows(bundle: "Bundle", report: dict[str, Any]) -> list[list[str]]:
    """A table of the members, its head first."""
    own = {row["name"]: row["score"] for row in report["members"]}
    head = ["member", "weight", "backbone", "image size", "own score", "MB"]
    return [head] + [
        [
            member.name,
            f"{member.weight:.3f}",
            " + ".join(str(part.recipe.get("backbone")) for part in member.parts),
            " + ".join(str(part.recipe.get("image_size")) for part in member.parts),
            f"{own[member.name]:.4f}" if member.name in own else "-",
            f"{bundle.model_bytes(member) / 2**20:.1f}",
        ]
        for member in bundle.members
    ]


def score_text(row: dict[str, Any]) -> str:
    error = f" ± {row['standard_error']:.4f}" if "standard_error" in row else ""
    return f"{row['score']:.4f}{error}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
