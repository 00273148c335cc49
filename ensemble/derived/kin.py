"""Which members may be averaged weight by weight: one start, one shape, one scale."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from ensemble.derived.sources import listed, model_file, part
from ensemble.members import Member, Pool

_SAME = ("backbone", "image_size", "channels", "normalise", "stain", "fusion", "pooling", "head")
_RELATIVE = 1e-5  # of target and image scales: machines differ in the last bit


@dataclass(frozen=True, kw_only=True, eq=False)
class _Looks:
    """What a member's fold models look like from outside."""

    recipe: dict[str, Any]
    tensors: list[dict[str, tuple[str, tuple[int, ...]]]]  # by fold: name -> type and shape
    facts: list[dict[str, Any]]  # by fold: the tensors target.mean, target.std, ...


def kin(pool: Pool) -> tuple[list[list[int]], list[str]]:
    """Groups of two or more members that fit together, and why others are in none.

    A member joins the first group whose first member it fits.
    """
    reasons: dict[str, list[str]] = defaultdict(list)
    looks: dict[int, _Looks] = {}
    for m, member in enumerate(pool.members):
        look = _look(member, pool.folds)
        if (reason := _foreign(look)) is None:
            looks[m] = look
        else:
            reasons[reason].append(member.name)
    groups: list[list[int]] = []
    for m in looks:
        for group in groups:
            if not _differences(looks[group[0]], looks[m]):
                group.append(m)
                break
        else:
            groups.append([m])
    notes = [f"no soup of {listed(names)}: {reason}" for reason, names in reasons.items()]
    for (m,) in (group for group in groups if len(group) == 1):
        name = pool.members[m].name
        found = [(_differences(looks[m], looks[other]), other) for other in looks if other != m]
        if not found:
            notes.append(f"no soup of {name}: no other member could be averaged with it")
            continue
        differences, nearest = min(found, key=lambda pair: len(pair[0]))
        there = pool.members[nearest].name
        notes.append(f"no soup of {name}: it differs from {there} in {', '.join(differences)}")
    return [group for group in groups if len(group) > 1], notes


def _foreign(look: _Looks) -> str | None:
    """Why a member's weights share their start with nobody's; None: they may."""
    recipe = look.recipe
    if recipe.get("weights") != "pretrained":
        return "random weights start elsewhere in every trial, and their mean is no model"
    if recipe.get("probe", "none") != "none":
        return "a probe is fitted on frozen weights, and its head is no layer"
    if recipe.get("head") == "mlp":
        return "the hidden layer of an mlp head starts elsewhere in every trial"
    if any(name.startswith("fusion.") for name in look.tensors[0]):
        return "a learned fusion of views starts elsewhere in every trial"
    return None


def _look(member: Member, folds: int) -> _Looks:
    from safetensors import safe_open

    from search.model.infer import FACTS

    tensors, facts = [], []
    for fold in range(folds):
        with safe_open(model_file(member, fold), framework="pt", device="cpu") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            facts.append({name: file.get_tensor(name) for name in FACTS if name in slices})
            tensors.append(
                {name: (s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
            )
    return _Looks(recipe=part(member).recipe, tensors=tensors, facts=facts)


def _differences(one: _Looks, other: _Looks) -> list[str]:
    """In what two members' models differ, in words; empty: they can be averaged."""
    found = [
        f"{name} ({one.recipe.get(name)} and {other.recipe.get(name)})"
        for name in _SAME
        if one.recipe.get(name) != other.recipe.get(name)
    ]
    if _activations(one.recipe) != _activations(other.recipe):
        found.append("activation")
    if one.tensors != other.tensors:
        return found or ["tensors"]
    for name in sorted({name for fold in one.facts for name in fold}):
        pairs = zip(one.facts, other.facts, strict=True)
        if not all(a[name].allclose(b[name], rtol=_RELATIVE, atol=0) for a, b in pairs):
            found.append(name)
    return found


def _activations(recipe: dict[str, Any]) -> tuple[str | None, str | None]:
    """The activations in head and backbone, None where the recipe's plays no part."""
    own = str(recipe.get("activation"))
    in_head = recipe.get("head") != "linear"
    return own if in_head else None, own if recipe.get("activation_backbone") else None
