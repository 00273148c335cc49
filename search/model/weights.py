"""Pretrained weights: where they can come from, and reading them from a local folder."""

import os
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.models import get_pretrained_cfg, load_model_config_from_hf, load_state_dict
from torch import Tensor, nn

from spaces.errors import UserError

_SUFFIXES = (".safetensors", ".pth", ".pt")
_HUB_SECONDS = 3.0
HUB = "hf-hub:"  # before OWNER/MODEL: timm's name for a model that the hub describes


@dataclass(frozen=True, kw_only=True)
class WeightsSource:
    """Where pretrained weights come from: the hub (`folder` None), a folder, or nowhere."""

    pretrained: bool
    folder: Path | None
    reason: str


def probe_weights(mode: str, backbones: Sequence[str] = ()) -> WeightsSource:
    """Where pretrained weights can come from; answers within seconds.

    mode: "random"; "pretrained" (the hub, or UserError); "auto" (the hub if it answers or already
    has the weights in its cache, else random weights); or a folder of weight files, which must
    hold every one of `backbones` that timm itself knows.
    """
    if mode == "random":
        return WeightsSource(pretrained=False, folder=None, reason="random weights were asked for")
    if mode not in ("auto", "pretrained"):
        folder = Path(mode).expanduser()
        if not folder.is_dir():
            raise UserError(_no_folder(folder))
        faults: list[str] = []
        for name in (name for name in backbones if not name.startswith(HUB)):
            try:
                weight_file(folder, name)
            except UserError as error:
                faults += error.faults
        if faults:
            raise UserError(faults)
        return WeightsSource(pretrained=True, folder=folder, reason=f"weights from {folder}")
    absent = _not_cached(backbones)
    if not absent:
        reason = "pretrained weights are in the local cache"
        return WeightsSource(pretrained=True, folder=None, reason=reason)
    fault = _hub_fault()
    if fault is None:
        return WeightsSource(pretrained=True, folder=None, reason="the weights hub answers")
    if mode == "pretrained":
        raise UserError(
            f"pretrained weights were asked for but {fault}; connect to it, or use "
            "--weights DIR for local files, or --weights random"
        )
    return WeightsSource(pretrained=False, folder=None, reason=f"random weights, since {fault}")


def reachable_backbones(
    names: Sequence[str], source: WeightsSource
) -> tuple[tuple[str, ...], list[str]]:
    """The backbones that can be had, and a line for each of the hub's that cannot: many are gated.

    Those that timm itself knows are kept. Answers within seconds.
    """
    asked = [name for name in names if name.startswith(HUB)]
    if not asked:
        return tuple(names), []
    if source.pretrained and source.folder is None:
        reasons = _refusals(_not_cached(asked))
    else:
        reasons = dict.fromkeys(asked, f"only the hub has it ({source.reason})")
    lines = [f"backbone {name} is skipped: {reason}" for name, reason in reasons.items()]
    return tuple(name for name in names if name not in reasons), lines


def hub_model(name: str) -> tuple[str, dict[str, Any]]:
    """timm's architecture and options for a model of the hub, whose config must be within reach."""
    _, architecture, model_args = load_model_config_from_hf(name.removeprefix(HUB))
    return architecture, dict(model_args or {})


def hub_id(name: str) -> str | None:
    """OWNER/MODEL of a backbone that is named by it, else that of timm's own weights, if any."""
    if name.startswith(HUB):
        found = re.fullmatch(rf"{HUB}([\w.-]+/[\w.-]+)(@[\w./-]+)?", name)
        return found[1] if found else None
    config = get_pretrained_cfg(name)
    return config.hf_hub_id if config else None


def _refusals(names: Sequence[str]) -> dict[str, str]:
    """Why the hub does not give away each of those that it does not."""
    if not names:
        return {}
    if (fault := _hub_fault()) is not None:
        return dict.fromkeys(names, fault)
    late = f"the hub did not answer within {_HUB_SECONDS:g} s"
    answers: dict[str, str | None] = dict.fromkeys(names, late)

    def ask(name: str) -> None:
        try:
            load_model_config_from_hf(name.removeprefix(HUB))  # gated as the weights are
            answers[name] = None
        except (OSError, ValueError, KeyError) as error:  # the hub's errors are OSErrors
            words = re.sub(r"([a-z])([A-Z])", r"\1 \2", type(error).__name__.removesuffix("Error"))
            answers[name] = f"the hub says {words.lower()}; ask its owners for access, or log in"

    threads = [threading.Thread(target=ask, args=(name,), daemon=True) for name in names]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + _HUB_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return {name: answer for name in names if (answer := answers[name]) is not None}


def _no_folder(folder: Path) -> str:
    return f"weights folder {folder} does not exist; give auto, pretrained, random or a folder"


def weight_file(folder: Path, backbone: str) -> Path:
    """The file of a backbone: `arch.tag` if named so, else `arch`, with a known suffix."""
    if not folder.is_dir():
        raise UserError(_no_folder(folder))
    for stem in dict.fromkeys((backbone, backbone.split(".")[0])):
        for suffix in _SUFFIXES:
            path = folder / f"{stem}{suffix}"
            if path.is_file():
                return path
    there = sorted(p.name for p in folder.iterdir() if p.suffix in _SUFFIXES)
    raise UserError(
        f"weights folder {folder} has no {backbone}.safetensors (or .pth, .pt); "
        f"it has: {', '.join(there) or 'no weight file'}"
    )


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """Tensors of a weight file. Pickled code is refused, never run."""
    try:
        return load_state_dict(str(path), device="cpu", weights_only=True)
    except Exception as error:  # every reader has its own kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"weights file {path} cannot be read as plain tensors ({reason}); "
            "save a state_dict, best as .safetensors"
        ) from error


def refuse_foreign(backbone: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """timm loads what fits and leaves the rest random. Refuse a file of which little was used.

    Compared by content, since timm renames tensors of some sources.
    """
    there = {_fingerprint(tensor) for tensor in state.values() if tensor.is_floating_point()}
    # Kernels only: norms and biases start alike everywhere.
    kernels = [parameter.detach() for parameter in backbone.parameters() if parameter.ndim > 1]
    loaded = [_fingerprint(kernel) in there for kernel in kernels]
    if sum(loaded) < 0.5 * len(loaded):
        raise UserError(
            f"the weights given for {name} fill {sum(loaded)} of its {len(loaded)} kernels; "
            "give a file of this architecture"
        )


def _fingerprint(tensor: Tensor) -> tuple[int, float, float]:
    flat = tensor.float().flatten()
    return flat.numel(), float(flat.double().sum()), float(flat.abs().max() if len(flat) else 0)


def _not_cached(backbones: Sequence[str]) -> list[str]:
    """Those whose weights the hub's local cache lacks; without names, a stand-in entry."""
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE", f"{home}/hub")).expanduser()
    absent = []
    for name in backbones:
        hub = hub_id(name)
        snapshots = cache / f"models--{str(hub).replace('/', '--')}" / "snapshots"
        files = ("model.safetensors", "pytorch_model.bin")
        if not hub or not any(any(snapshots.glob(f"*/{file}")) for file in files):
            absent.append(name)
    return absent if backbones else ["any"]


def _hub_fault(seconds: float = _HUB_SECONDS) -> str | None:
    """Why the weights hub cannot be used, None if it answers. Takes at most about `seconds`."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return "HF_HUB_OFFLINE is set"
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    answer: list[str | None] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(endpoint, method="HEAD")
            with urllib.request.urlopen(request, timeout=seconds):
                answer.append(None)
        except urllib.error.HTTPError as error:
            # It answered; 4xx for HEAD on the front page says nothing about the files.
            answer.append(None if error.code < 500 else f"{endpoint} answers {error.code}")
        except (OSError, ValueError) as error:
            cause = getattr(error, "reason", error)
            answer.append(f"{endpoint} cannot be reached ({getattr(cause, 'strerror', cause)})")

    # A thread, since looking up a name ignores the time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answer[0] if answer else f"{endpoint} did not answer within {seconds:g} s"
