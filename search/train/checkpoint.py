"""The state of a fold's training at an epoch boundary, as tensors: snapshot, file, resume."""

import contextlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from search.model.backbone import Network
from search.run_folder import write_file
from search.train.optim import AveragedModel, Plateau
from spaces.errors import UserError
from spaces.recipe import Recipe

_FORMAT = "2"


@dataclass(eq=False)
class TrainState:
    """What one fold's training changes: weights, their average, the optimiser, the position."""

    network: Network
    average: AveragedModel
    optimizer: torch.optim.Optimizer
    plateau: Plateau = field(default_factory=Plateau)
    epoch: int = 0  # epochs completed
    step: int = 0  # optimiser steps completed
    micro_batch: int = 0
    bf16: bool = False  # whether forward and backward compute in bfloat16

    def end_epoch(self, loss: float) -> None:
        """What follows from an epoch that was trained to its end, with its mean loss."""
        self.plateau.observe(loss)
        self.average.end_epoch(self.epoch)

    def tensors(self, wait: bool = True) -> dict[str, Tensor]:
        """Copies of all tensors, on the CPU; without `wait` a GPU may still be writing them, which
        only what comes after on the GPU need not mind."""
        out = {f"model.{k}": v for k, v in self.network.state_dict().items()}
        if self.average.network is not self.network:
            out |= {f"average.{k}": v for k, v in self.average.network.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    out[f"optimizer.{key}.{name}"] = value
        copies = {k: _copy(v.detach()) for k, v in out.items()}
        if wait and any(v.is_cuda for v in out.values()):
            torch.cuda.synchronize()
        return copies

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` gave; an optimiser that had not stepped is fresh again."""
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        self.network.load_state_dict(parts["model"])
        self.average.load(parts["average"])
        parameters = dict(self.network.named_parameters())
        self.optimizer.state.clear()
        self.optimizer.zero_grad(set_to_none=True)
        for name, tensor in parts["optimizer"].items():
            key, _, parameter_name = name.partition(".")
            parameter = parameters[parameter_name]
            if tensor.shape == parameter.shape:  # moments lie in memory as their parameter does
                value = torch.empty_like(parameter, requires_grad=False).copy_(tensor)
            else:
                value = tensor.to(parameter.device)
            self.optimizer.state[parameter][key] = value


def _copy(tensor: Tensor) -> Tensor:
    """A copy on the CPU, from a GPU without waiting: one by one, hundreds of small ones would take
    longer than many an epoch."""
    if not tensor.is_cuda:
        return tensor.to("cpu", copy=True)
    held = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return held.copy_(tensor, non_blocking=True)


@contextlib.contextmanager
def _reading(path: Path):  # type: ignore[no-untyped-def]
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is no epoch checkpoint ({error}); train the fold anew") from error


def save_epoch(path: Path, state: TrainState, recipe: Recipe, seed: int, note: str = "") -> None:
    """Write the state at an epoch boundary, with a note for whoever resumes."""
    metadata = {
        "format": _FORMAT,
        "kind": "epoch",
        "recipe": json.dumps(recipe.to_dict()),
        "digest": recipe.digest,
        "seed": str(seed),
        "epoch": str(state.epoch),
        "step": str(state.step),
        "micro_batch": str(state.micro_batch),
        "plateau": json.dumps(asdict(state.plateau)),
        "note": note,
    }
    tensors = {name: tensor.contiguous() for name, tensor in state.tensors().items()}
    write_file(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def load_epoch(path: Path, state: TrainState, recipe: Recipe, seed: int) -> str:
    """Continue from the checkpoint at `path`; returns its note.

    Raises UserError when it is none, or belongs to another recipe or seed.
    """
    with _reading(path) as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != _FORMAT or metadata.get("kind") != "epoch":
            raise UserError(f"{path} is no epoch checkpoint of format {_FORMAT}; train anew")
        if metadata["digest"] != recipe.digest or metadata["seed"] != str(seed):
            raise UserError(
                f"{path} belongs to recipe {metadata['digest']} with seed {metadata['seed']}, not "
                f"to recipe {recipe.digest} with seed {seed}; give that fold's own checkpoint"
            )
        state.load({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    state.epoch = int(metadata["epoch"])
    state.step = int(metadata["step"])
    state.micro_batch = int(metadata["micro_batch"])
    state.plateau = Plateau(**json.loads(metadata["plateau"]))
    return str(metadata.get("note", ""))
