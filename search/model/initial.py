"""Starting backbones from one's own checkpoints: of another run, or a file.

Such a start may know rows that a fold validates. So a run on the same rows serves only where the
folds of those rows agree, and then fold k starts from that run's model of fold k, which has not
seen them.

Shapes: N rows.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors import SafetensorError, safe_open
from timm.layers import resample_abs_pos_embed
from timm.models import adapt_input_conv
from torch import Tensor, nn

from search.data.folds import Folds, read_folds
from search.model.backbone import Network
from search.model.weights import read_weights
from search.run_folder import RunFolder, read_json
from spaces.backbones import architecture
from spaces.errors import UserError

logger = logging.getLogger(__name__)
_PREFIX = "backbone."
_HALF = 0.5  # of the kernels must fit: timm's architectures share names of tensors


@dataclass(frozen=True, kw_only=True)
class InitialPlan:
    """The checkpoint that each fold of each backbone starts from."""

    files: Mapping[str, tuple[Path, ...]]  # backbone -> the files, of fold 0 first
    sentence: str  # for the user

    def file_for(self, backbone: str, fold: int) -> Path | None:
        """None: this backbone starts as it would without."""
        files = self.files.get(backbone)
        return files[fold % len(files)] if files else None


def plan_initial(
    source: str, backbones: Sequence[str], ids: Sequence[str], fold_N: np.ndarray
) -> InitialPlan:
    """Where the folds of a search over `backbones` start, given the rows' ids and folds.

    `source` is a run's folder, of which each backbone's best finished trial is taken, or a file: a
    fold's model, or tensors by timm's names. Raises UserError when it is neither, has nothing for
    any of the backbones, or has seen rows that would be validated.
    """
    path = Path(source).expanduser().resolve()  # workers have another current folder
    if path.is_dir():
        return _from_run(RunFolder.open(path), backbones, ids, fold_N)
    if not path.is_file():
        raise UserError(f"--init-from {source} does not exist; give a run's folder or a checkpoint")
    return _from_file(path, backbones, ids, fold_N)


def start_from(network: Network, path: Path) -> int:
    """Copy the backbone in a checkpoint into the network; the number of tensors that were copied.
    Raises UserError when it is no checkpoint or of another architecture."""
    tensors, name = read_initial(path)
    return load_initial(network, tensors, f"{path}{f' ({name})' if name else ''}")


def read_initial(path: Path) -> tuple[Mapping[str, Tensor], str | None]:
    """The backbone's tensors by timm's names, and the backbone's name where the file tells it."""
    name = _backbone_in(path)
    tensors = read_weights(path)
    if name is None:
        return tensors, None
    own = {n.removeprefix(_PREFIX): t for n, t in tensors.items() if n.startswith(_PREFIX)}
    if not own:
        raise UserError(f"{path} is no fold's model; give RUN/checkpoints/TRIAL/fold-K.safetensors")
    return own, name


@torch.no_grad()
def load_initial(network: Network, tensors: Mapping[str, Tensor], source: str) -> int:
    """Copy the tensors whose names and shapes fit the network's backbone; how many did.

    A stem for another number of channels and positions of another image size are adapted as timm
    adapts pretrained ones. Heads and fusions are left alone. Raises UserError when less than half
    of the kernels are filled.
    """
    own = network.backbone.state_dict()
    fitting = _fitting(network.backbone, tensors)
    kernels = [name for name, tensor in own.items() if tensor.ndim > 1]
    filled = sum(name in fitting for name in kernels)
    if filled < _HALF * len(kernels):
        raise UserError(
            f"{source} fills {filled} of the backbone's {len(kernels)} kernels; "
            "give a checkpoint of the same architecture"
        )
    if left := [name for name in own if name not in fitting]:
        logger.warning("%s lacks what fits %s; they start anew", source, ", ".join(left[:5]))
    for name, tensor in fitting.items():
        own[name].copy_(tensor)
    return len(fitting)


def _fitting(backbone: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that the backbone can take, made fit where timm knows how."""
    found, stems = {}, _stems(backbone)
    for name, target in backbone.state_dict().items():
        tensor = tensors.get(name)
        if tensor is None:
            continue
        if name in stems and _apart_in_channels(tensor, target):
            tensor = adapt_input_conv(target.shape[1], tensor, base_chans=tensor.shape[1])
        if name == "pos_embed" and tensor.ndim == target.ndim == 3:  # of another image size
            rows, columns = backbone.patch_embed.grid_size  # type: ignore[union-attr, misc]
            prefix = target.shape[1] - rows * columns
            tensor = resample_abs_pos_embed(tensor, [rows, columns], num_prefix_tokens=prefix)
        if tensor.shape == target.shape:
            found[name] = tensor
    return found


def _apart_in_channels(tensor: Tensor, target: Tensor) -> bool:
    shapes = [(t.shape[:1], t.shape[2:]) for t in (tensor, target)]
    return tensor.ndim == target.ndim == 4 and shapes[0] == shapes[1]


def _stems(backbone: nn.Module) -> list[str]:
    """Names of the kernels that see the image's channels."""
    first = getattr(backbone, "pretrained_cfg", {}).get("first_conv") or ()
    return [f"{name}.weight" for name in ([first] if isinstance(first, str) else first)]


def _backbone_in(path: Path) -> str | None:
    """The backbone that a fold's model names, of whatever format; None for other files."""
    try:
        with safe_open(path, framework="pt") as file:
            recipe = (file.metadata() or {}).get("recipe")
    except (OSError, SafetensorError):  # not of this kind: read_weights tells what is wrong
        return None
    return str(json.loads(recipe)["backbone"]) if recipe else None


def _from_run(
    run: RunFolder, backbones: Sequence[str], ids: Sequence[str], fold_N: np.ndarray
) -> InitialPlan:
    theirs = read_folds(run.folds)
    shared = _shared(run, theirs, ids, fold_N)
    best: dict[str, tuple[float, int]] = {}  # architecture -> score and trial
    for trial in run.members():
        recipe = read_json(run.checkpoints(trial) / "recipe.json")["recipe"]
        if recipe.get("probe", "none") != "none":  # its backbone has learned nothing
            continue
        score = read_json(run.oof(trial) / "meta.json").get("score")
        found = (float("-inf") if score is None else float(score), trial)
        name = architecture(recipe["backbone"])
        best[name] = max(best.get(name, found), found, key=lambda one: (one[0], -one[1]))
    files = {
        name: tuple(
            run.checkpoints(best[architecture(name)][1]) / f"fold-{fold}.safetensors"
            for fold in range(theirs.k)
        )
        for name in backbones
        if architecture(name) in best
    }
    if not files:
        raise UserError(
            f"--init-from {run.root} has finished trials of {', '.join(best) or 'no backbone'}, "
            f"and the search is over {', '.join(backbones)}; give another run or --backbone"
        )
    lost = [str(path) for paths in files.values() for path in paths if not path.is_file()]
    if lost:
        raise UserError(f"--init-from {run.root} lacks {', '.join(lost)}; restore them")
    starts = [f"{name} from trial {best[architecture(name)][1]}" for name in files]
    said = f"{', '.join(starts)} of {run.root}"
    return InitialPlan(files=files, sentence=said + _rest(backbones, files, shared))


def _from_file(
    path: Path, backbones: Sequence[str], ids: Sequence[str], fold_N: np.ndarray
) -> InitialPlan:
    tensors, name = read_initial(path)
    if name is not None:
        serves = [one for one in backbones if architecture(one) == architecture(name)]
    else:
        serves = [one for one in backbones if _could_start(one, tensors)]
    if not serves:
        raise UserError(
            f"--init-from {path} is a checkpoint of {name or 'another architecture'}, and the "
            f"search is over {', '.join(backbones)}; give another file or --backbone"
        )
    files: tuple[Path, ...] = (path,)
    shared = 0
    root = next((folder for folder in path.parents if (folder / "run.json").is_file()), None)
    if root is not None:
        run = RunFolder(root)
        theirs = read_folds(run.folds)
        shared = _shared(run, theirs, ids, fold_N)
        if shared:  # one file has seen what other folds validate
            files = tuple(path.with_name(f"fold-{fold}.safetensors") for fold in range(theirs.k))
            if path not in files or not all(file.is_file() for file in files):
                raise UserError(
                    f"--init-from {path} has seen rows of this data, and beside it are not the "
                    f"models of all folds; give the run itself: --init-from {root}"
                )
    by_name = dict.fromkeys(serves, files)
    said = f"{', '.join(serves)} from {path}"
    return InitialPlan(files=by_name, sentence=said + _rest(backbones, by_name, shared))


def _rest(backbones: Sequence[str], files: Mapping[str, object], shared: int) -> str:
    same = f", each fold from its own model since {shared} rows are the same" if shared else ""
    others = ", ".join(name for name in backbones if name not in files)
    return same + (f"; left out: {others}" if others else "")


def _could_start(backbone: str, tensors: Mapping[str, Tensor]) -> bool:
    with torch.device("meta"):
        model = timm.create_model(backbone, num_classes=0)
        fitting = _fitting(model, tensors)
    kernels = [name for name, tensor in model.state_dict().items() if tensor.ndim > 1]
    return sum(name in fitting for name in kernels) >= _HALF * len(kernels)


def _refuse_ancestors(run: RunFolder, ids: Sequence[str]) -> None:
    """Raises UserError when a run that this one began with had any of these rows: which of them its
    models have seen can no longer be told."""
    starts = read_json(run.run).get("initial", {})
    paths = [Path(path) for folds in starts.values() for path in folds.values()]
    roots = {folder for path in paths for folder in path.parents if (folder / "run.json").is_file()}
    for root in sorted(roots):
        ancestor = RunFolder(root)
        if known := len(set(ids) & set(read_folds(ancestor.folds).ids)):
            raise UserError(
                f"--init-from {run.root} began with models of {root}, which has {known} rows of "
                "the same ids: they may have seen what would be validated; give another run"
            )
        _refuse_ancestors(ancestor, ids)


def _shared(run: RunFolder, theirs: Folds, ids: Sequence[str], fold_N: np.ndarray) -> int:
    """How many rows are also that run's. Raises UserError when one lies in another fold there."""
    _refuse_ancestors(run, ids)
    fold_of = dict(zip(theirs.ids, theirs.fold.tolist(), strict=True))
    pairs = [
        (fold_of[name], fold)
        for name, fold in zip(ids, np.asarray(fold_N).tolist(), strict=True)
        if name in fold_of
    ]
    if moved := sum(a != b for a, b in pairs):
        raise UserError(
            f"--init-from {run.root} was trained on {len(pairs)} rows of the same ids, {moved} of "
            "them in other folds, so its models have seen what would be validated; give a run "
            "with the same folds (data, --groups, --folds and --seed), or one on other rows"
        )
    return len(pairs)
