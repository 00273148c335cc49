"""Networks of one hidden layer on frozen features. Heads that differ in dropout alone are trained
together, on the same batches: one batched product each where there would be several.

Shapes: M heads, N rows, B batch, R features, H hidden units, T outputs.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from search.model.links import apply_link
from search.train.optim import learning_rate
from search.train.probe_rows import Choice, ProbeRows, Settings, best

HIDDEN = (256, 1024)
DROPS = (0.0, 0.3, 0.5)  # of hidden units
RATES = ((3e-4, 0.01), (2e-3, 0.3))  # peak learning rate and weight decay
STEPS = 200
BATCH = 128  # rows
JUDGED_EVERY = 10  # steps
PATIENCE = 4  # judgements without a better one
_HELD_OUT = 0.2  # of the training rows, on which heads are judged and stopped
_WARMUP = 10  # steps
_STD_FLOOR = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class _Data:
    """What networks are trained on: float32, targets standardised where they are values."""

    x_NR: Tensor
    y_NT: Tensor
    link: str
    seed: int

    def start(self) -> Tensor:
        """(T) the raw outputs that predict the mean of each target, as if half a row more of it
        and of its opposite had been seen."""
        mean_T = (self.y_NT.sum(dim=0) + 0.5) / (len(self.y_NT) + 1)
        if self.link == "identity":
            return torch.zeros_like(mean_T)
        return mean_T.log() if self.link == "softmax" else mean_T.logit()


class _Heads(nn.Module):
    """M networks beside each other, which differ in their dropout."""

    def __init__(self, data: _Data, hidden: int, drops: tuple[float, ...]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(data.seed)
        inputs, outputs, heads = data.x_NR.shape[1], data.y_NT.shape[1], len(drops)

        def start(rows: int, columns: int) -> nn.Parameter:  # the same for every head
            drawn = torch.randn(rows, columns, generator=generator) / rows**0.5
            return nn.Parameter(drawn.repeat(heads, 1, 1).to(data.x_NR.device))

        self.first_MRH, self.first_bias_M1H = start(inputs, hidden), start(1, hidden)
        self.last_MHT, self.last_bias_M1T = start(hidden, outputs), start(1, outputs)
        with torch.no_grad():
            self.first_bias_M1H.zero_()
            self.last_bias_M1T.copy_(data.start())
            self.last_MHT.mul_(0.1)  # predictions start near the mean
        self.keep_M11 = 1 - torch.tensor(drops, device=data.x_NR.device)[:, None, None]
        self._masks = torch.Generator(data.x_NR.device).manual_seed(data.seed)

    def forward(self, x_BR: Tensor) -> Tensor:
        """Raw outputs (M, B, T)."""
        x_MBR = x_BR.expand(len(self.first_MRH), -1, -1)
        hidden_MBH = torch.baddbmm(self.first_bias_M1H, x_MBR, self.first_MRH).relu()
        if self.training:
            drawn_MBH = torch.empty_like(hidden_MBH).uniform_(generator=self._masks)
            hidden_MBH = hidden_MBH * ((drawn_MBH < self.keep_M11) / self.keep_M11)
        return torch.baddbmm(self.last_bias_M1T, hidden_MBH, self.last_MHT)


def fit_mlp(rows: ProbeRows) -> Choice:
    """The head with the best score on rows held out of its training, trained again on all rows for
    as many steps as were best there."""
    data, mean_T, std_T = _data(rows)
    held = _held_out(rows)
    out = torch.from_numpy(np.flatnonzero(held)).to(rows.device)
    inner = torch.from_numpy(np.flatnonzero(~held)).to(rows.device)
    part = _Data(x_NR=data.x_NR[inner], y_NT=data.y_NT[inner], link=data.link, seed=data.seed)
    judge = rows.judge(out)

    def judged(heads: _Heads) -> list[float]:
        raw_MBT = heads(data.x_NR[out])
        return [judge(_values(raw_BT, rows.link, mean_T, std_T)) for raw_BT in raw_MBT]

    table: list[tuple[Settings, float]] = []
    for hidden, (lr, decay) in itertools.product(HIDDEN, RATES):
        found = _search(part, hidden, lr, decay, judged)
        for drop, (score, steps) in zip(DROPS, found, strict=True):
            tried: Settings = {"hidden": hidden, "drop": drop, "lr": lr, "weight_decay": decay}
            table.append(({**tried, "steps": steps}, score))
    settings = table[best(table)][0]
    heads = _Heads(data, settings["hidden"], (settings["drop"],))
    for _ in _steps(heads, data, settings["lr"], settings["weight_decay"], settings["steps"]):
        pass
    first, last = heads.first_MRH[0].detach().double(), heads.last_MHT[0].detach().double()
    hidden_weight, hidden_bias = rows.linear(first, heads.first_bias_M1H[0, 0].detach().double())
    tensors = {
        "hidden_weight": hidden_weight,
        "hidden_bias": hidden_bias,
        "weight": (last * std_T).T.float(),
        "bias": (heads.last_bias_M1T[0, 0].detach().double() * std_T + mean_T).float(),
    }
    return Choice(settings=settings, tensors=tensors, table=table)


def _data(rows: ProbeRows) -> tuple[_Data, Tensor, Tensor]:
    """The data, with the mean (T) and scale (T) that its targets were standardised by."""
    mean_T, std_T = rows.y_NT.mean(dim=0), rows.y_NT.std(dim=0, correction=0)
    std_T = torch.where(std_T > _STD_FLOOR, std_T, torch.ones_like(std_T))
    if rows.link != "identity":
        mean_T, std_T = torch.zeros_like(mean_T), torch.ones_like(std_T)
    y_NT = ((rows.y_NT - mean_T) / std_T).float()
    return _Data(x_NR=rows.x_NR.float(), y_NT=y_NT, link=rows.link, seed=rows.seed), mean_T, std_T


def _held_out(rows: ProbeRows) -> Any:
    """(N,) whether a row is held out: a share drawn from the seed, groups whole."""
    count = len(rows.x_NR)
    group_N = np.arange(count) if rows.group_N is None else rows.group_N
    size_G = np.bincount(group_N)
    order = np.random.default_rng(rows.seed).permutation(len(size_G))
    filled = np.cumsum(size_G[order])
    chosen = order[: 1 + np.searchsorted(filled, _HELD_OUT * count)][: len(size_G) - 1]
    return np.isin(group_N, chosen)


def _search(
    data: _Data, hidden: int, lr: float, decay: float, judged: Callable[[_Heads], list[float]]
) -> list[tuple[float, int]]:
    """For each dropout the best score and the steps that gave it."""
    heads = _Heads(data, hidden, DROPS)
    found, since = [(-np.inf, JUDGED_EVERY)] * len(DROPS), 0
    for step in _steps(heads, data, lr, decay, STEPS):
        if step % JUDGED_EVERY:
            continue
        heads.eval()
        with torch.inference_mode():
            scores = judged(heads)
        heads.train()
        since += 1
        for i, score in enumerate(scores):
            if score > found[i][0]:
                found[i], since = (score, step), 0
        if since == PATIENCE:
            break
    return found


def _steps(heads: _Heads, data: _Data, lr: float, weight_decay: float, steps: int) -> Iterator[int]:
    """Train for `steps`; yields the number done after each. The schedule is that of STEPS."""
    kernels = [p for p in heads.parameters() if p.shape[1] > 1]
    biases = [p for p in heads.parameters() if p.shape[1] == 1]
    groups: list[dict[str, Any]] = [{"params": kernels}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, fused=True)
    for step, rows_B in zip(range(steps), _batches(data), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, STEPS, _WARMUP, lr)
        loss = _loss(heads(data.x_NR[rows_B]), data.y_NT[rows_B], data.link)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield step + 1


def _batches(data: _Data) -> Iterator[Tensor]:
    """Rows of one batch after the other, each row once per pass, for ever."""
    generator = torch.Generator().manual_seed(data.seed)
    size = min(BATCH, len(data.x_NR))
    while True:
        order = torch.randperm(len(data.x_NR), generator=generator).to(data.x_NR.device)
        for start in range(0, len(order) - size + 1, size):
            yield order[start : start + size]


def _loss(raw_MBT: Tensor, y_BT: Tensor, link: str) -> Tensor:
    """The sum of the heads' losses: none tells another what to learn."""
    y_MBT = y_BT.expand_as(raw_MBT)
    if link == "softmax":
        entropy_MB = -(y_MBT * raw_MBT.log_softmax(dim=2)).sum(dim=2)
        return entropy_MB.mean(dim=1).sum()
    if link == "sigmoid":
        mean = functional.binary_cross_entropy_with_logits(raw_MBT, y_MBT)
    else:
        mean = functional.mse_loss(raw_MBT, y_MBT)
    return mean * len(raw_MBT)


def _values(raw_NT: Tensor, link: str, mean_T: Tensor, std_T: Tensor) -> Tensor:
    return raw_NT * std_T + mean_T if link == "identity" else apply_link(raw_NT, link)
