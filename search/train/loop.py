"""One epoch of training. Nothing in its step loop waits for the device.

Shapes: B batch (rows; of images as many for each row as it has views), C channels, H W height and
width, T outputs.
"""

import hashlib

import torch

from search.data.batches import Batches
from search.model.infer import autocast
from search.model.losses import Loss
from search.model.memory import pieces
from search.train.checkpoint import TrainState
from search.train.compiled import Forward
from search.train.optim import learning_rate, training_mode
from search.train.parallel import Peers
from spaces.recipe import Recipe


def epoch_seed(seed: int, epoch: int) -> int:
    """Seed of everything random in epoch `epoch` (from 0): a function of nothing else, so that
    training resumed at an epoch boundary goes on as if it had never stopped."""
    digest = hashlib.sha256(f"{seed}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Optimiser steps of an epoch: whole batches, or one batch of all when there are fewer rows."""
    return max(rows // batch_size, 1)


def train_epoch(
    state: TrainState,
    batches: Batches,
    recipe: Recipe,
    seed: int,
    loss_of: Loss,
    micro_batch: int,
    forward: Forward | None = None,
    peers: Peers | None = None,
) -> float:
    """Train one epoch from `state`, which it advances; the mean loss per row.

    A batch larger than `micro_batch` is accumulated from parts, each weighted by its rows.
    `forward` computes what the network does; None: the network itself. `peers` train other rows of
    each batch; None: there are none. What is drawn for a batch does not depend on who trains it.
    """
    network, optimizer = state.network, state.optimizer
    peers = Peers(network) if peers is None else peers
    generator = torch.Generator().manual_seed(epoch_seed(seed, state.epoch))
    # Dropout and stochastic depth; no two ranks draw the same for their rows.
    torch.manual_seed(epoch_seed(seed, state.epoch) ^ (1 + peers.rank.index))
    forward = network if forward is None else forward
    training_mode(network)
    rows = len(batches.rows)
    steps = steps_per_epoch(rows, recipe.batch_size)
    batch = min(rows, recipe.batch_size)  # rows of every one
    total, warmup = steps * recipe.epochs, round(steps * recipe.warmup)
    head_warmup = round(steps * recipe.head_warmup)
    loss_sum = torch.zeros((), device=batches.device)
    drop_last = rows >= recipe.batch_size
    with peers.epoch(steps):
        for images_BCHW, targets_BT in batches.epoch(
            recipe.batch_size,
            recipe.augment,
            generator,
            drop_last=drop_last,
            share=peers.rank.share,
        ):
            rate = learning_rate(state.step, total, warmup, recipe.lr, recipe.schedule)
            if recipe.schedule == "plateau":
                rate *= state.plateau.factor
            for group in optimizer.param_groups:
                waits = group["backbone"] and state.step < head_warmup
                group["lr"] = 0.0 if waits else rate * group["scale"]
            views = len(images_BCHW) // len(targets_BT)
            for part in pieces(len(targets_BT), micro_batch):
                share = (part.stop - part.start) / batch
                with autocast(batches.device, state.bf16):
                    pred_BT = forward(images_BCHW[part.start * views : part.stop * views])
                loss = loss_of(pred_BT, targets_BT[part])
                (loss * share).backward()
                loss_sum += loss.detach() * (part.stop - part.start)
            peers.sum_gradients()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            state.average.update(state.step)
            state.step += 1
        mean_loss = peers.sum_loss(loss_sum) / (steps * batch)
    state.epoch += 1
    return mean_loss
