"""Losses of classes, against PyTorch's, torchvision's and the papers' formulas.

Shapes: B batch, N training rows, T outputs.
"""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from search.model.losses import adds_up, class_weights, first_bias, make_loss, target_scale
from search.train.sampling import sampling_weights
from spaces.errors import UserError
from spaces.parts import CLASSIFICATION_LOSSES, Classification

ROWS, OUTPUTS, CLASSES = 40, 5, 4
TYPES = ("binary", "multilabel", "multiclass")


def labels(task_type: str, seed: int = 0) -> Tensor:
    """Targets (N, T) of 0 and 1; of the labels some are rare."""
    rng = np.random.default_rng(seed)
    if task_type == "multiclass":
        class_N = rng.choice(CLASSES, ROWS, p=[0.7, 0.15, 0.1, 0.05])
        return torch.from_numpy(np.eye(CLASSES, dtype=np.float32)[class_N])
    outputs = 1 if task_type == "binary" else OUTPUTS
    has_NT = rng.random((ROWS, outputs)) < np.linspace(0.6, 0.05, outputs)
    has_NT[0] = True
    return torch.from_numpy(has_NT.astype(np.float32))


def mixed(target_NT: Tensor) -> Tensor:
    """Soft targets, as mixup makes them."""
    return 0.7 * target_NT + 0.3 * target_NT.roll(1, 0)


def raw(target_NT: Tensor) -> Tensor:
    return 3 * torch.randn(target_NT.shape, generator=torch.Generator().manual_seed(1))


def value(part: Classification, task_type: str, pred_NT: Tensor, target_NT: Tensor) -> Tensor:
    return make_loss(part, task_type=task_type, targets_NT=labels(task_type))(pred_NT, target_NT)


# --- cross entropy


@pytest.mark.parametrize("soft", (False, True))
@pytest.mark.parametrize("smoothing", (0.0, 0.1))
@pytest.mark.parametrize("weight", ("none", "balanced"))
@pytest.mark.parametrize("task_type", TYPES)
def test_cross_entropy_is_pytorchs(
    task_type: str, weight: str, smoothing: float, soft: bool
) -> None:
    part = Classification(class_weight=weight, label_smoothing=smoothing)
    target_NT = mixed(labels(task_type)) if soft else labels(task_type)
    pred_NT = raw(target_NT)
    weight_T = class_weights(part, task_type, labels(task_type))
    if task_type == "multiclass":
        rows = F.cross_entropy(
            pred_NT, target_NT, weight=weight_T, label_smoothing=smoothing, reduction="none"
        )
        expected = rows.mean()  # not over the weights: a batch is the mean of its parts
    else:
        smooth_NT = target_NT * (1 - smoothing) + smoothing / 2
        expected = F.binary_cross_entropy_with_logits(pred_NT, smooth_NT, pos_weight=weight_T)
    torch.testing.assert_close(value(part, task_type, pred_NT, target_NT), expected)


def test_without_a_part_classes_are_learned_by_cross_entropy() -> None:
    target_NT = labels("multiclass")
    loss_of = make_loss(None, task_type="multiclass", targets_NT=target_NT)
    pred_NT = raw(target_NT)
    torch.testing.assert_close(loss_of(pred_NT, target_NT), F.cross_entropy(pred_NT, target_NT))


# --- focal and asymmetric


@pytest.mark.parametrize("gamma", (0.0, 0.5, 2.0))
@pytest.mark.parametrize("task_type", ("binary", "multilabel"))
def test_focal_loss_is_torchvisions(task_type: str, gamma: float) -> None:
    target_NT = labels(task_type)
    pred_NT = raw(target_NT)
    expected = sigmoid_focal_loss(pred_NT, target_NT, alpha=-1, gamma=gamma, reduction="mean")
    part = Classification(loss="focal", gamma=gamma)
    torch.testing.assert_close(value(part, task_type, pred_NT, target_NT), expected)


def test_focal_loss_of_a_softmax_weighs_a_row_by_what_its_class_lacks() -> None:
    target_NT = labels("multiclass")
    pred_NT = raw(target_NT)
    own_N = (pred_NT.softmax(1) * target_NT).sum(1)
    expected = (-((1 - own_N) ** 1.5) * own_N.log()).mean()
    part = Classification(loss="focal", gamma=1.5)
    torch.testing.assert_close(value(part, "multiclass", pred_NT, target_NT), expected)


@pytest.mark.parametrize("task_type", TYPES)
def test_asymmetric_loss_is_the_papers_formula(task_type: str) -> None:
    target_NT = labels(task_type)
    pred_NT = raw(target_NT)
    p = (pred_NT.softmax(1) if task_type == "multiclass" else pred_NT.sigmoid()).double()
    shifted = (p - 0.05).clamp(min=0)
    entries = -(target_NT * p.log() + (1 - target_NT) * shifted**3 * (1 - shifted).log())
    expected = entries.sum(1).mean() if task_type == "multiclass" else entries.mean()
    part = Classification(loss="asymmetric", gamma=3)
    found = value(part, task_type, pred_NT, target_NT)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


# --- what all of them share


@pytest.mark.parametrize("loss", CLASSIFICATION_LOSSES)
@pytest.mark.parametrize("task_type", TYPES)
def test_micro_batches_and_mixtures_add_up(task_type: str, loss: str) -> None:
    part = Classification(loss=loss, class_weight="balanced", label_smoothing=0.05)
    assert adds_up(part)
    target_NT = labels(task_type)
    pred_NT, other_NT = raw(target_NT), target_NT.roll(3, 0)
    loss_of = make_loss(part, task_type=task_type, targets_NT=target_NT)
    cut = sum(loss_of(pred_NT[i : i + 10], target_NT[i : i + 10]) for i in range(0, ROWS, 10)) / 4
    torch.testing.assert_close(cut, loss_of(pred_NT, target_NT))
    mixture = 0.3 * loss_of(pred_NT, target_NT) + 0.7 * loss_of(pred_NT, other_NT)
    torch.testing.assert_close(loss_of(pred_NT, 0.3 * target_NT + 0.7 * other_NT), mixture)


@pytest.mark.parametrize("gamma", (0.0, 0.5, 4.0))
@pytest.mark.parametrize("loss", CLASSIFICATION_LOSSES)
@pytest.mark.parametrize("task_type", TYPES)
def test_slopes_are_finite_however_sure_the_network_is(
    task_type: str, loss: str, gamma: float
) -> None:
    target_NT = labels(task_type)
    for sureness in (0.0, 30.0, 1e3):
        for sign in (1, -1):
            pred_NT = (sign * sureness * (2 * target_NT - 1)).requires_grad_()
            total = value(Classification(loss=loss, gamma=gamma), task_type, pred_NT, target_NT)
            total.backward()
            assert total.isfinite() and total >= -1e-5
            assert pred_NT.grad is not None and pred_NT.grad.isfinite().all()


@pytest.mark.parametrize("loss", CLASSIFICATION_LOSSES)
@pytest.mark.parametrize("task_type", TYPES)
def test_bfloat16_outputs_are_judged_in_float32(task_type: str, loss: str) -> None:
    target_NT = labels(task_type)
    total = value(Classification(loss=loss), task_type, raw(target_NT).bfloat16(), target_NT)
    assert total.dtype == torch.float32


# --- balance


def test_rare_positives_weigh_negatives_per_positive_at_most_ten() -> None:
    counts = (20, 10, 1, 0, 40)
    targets_NT = torch.stack([(torch.arange(ROWS) < n).float() for n in counts], dim=1)
    weight_T = class_weights(Classification(class_weight="balanced"), "multilabel", targets_NT)
    assert weight_T.tolist() == pytest.approx([1, 3, 10, 1, 1])


def test_class_weights_leave_a_row_its_mean_weight() -> None:
    targets_NT = labels("multiclass")
    part = Classification(class_weight="balanced")
    weight_T = class_weights(part, "multiclass", targets_NT)
    count_T = targets_NT.sum(0)
    torch.testing.assert_close(weight_T, ROWS / (CLASSES * count_T))
    assert (targets_NT @ weight_T).mean() == pytest.approx(1)
    none_T = class_weights(part, "multiclass", torch.eye(3)[[0] * 39 + [1]])
    assert none_T.tolist() == pytest.approx([40 / 39 / 3, 10, 1])  # capped; a class never seen


def test_the_rest_weighs_together_and_without_what_teaches_nothing() -> None:
    targets_NT = labels("multilabel").clone()
    targets_NT[:, 3] = 0  # no positive
    pred_NT = raw(targets_NT)
    rows_NT = F.binary_cross_entropy_with_logits(pred_NT, targets_NT, reduction="none")
    expected = rows_NT[:, 0].mean() + 0.4 * rows_NT[:, [1, 2, 4]].mean()
    loss_of = make_loss(
        Classification(rest_weight=0.4), task_type="multilabel", targets_NT=targets_NT
    )
    torch.testing.assert_close(loss_of(pred_NT, targets_NT), expected)
    only = make_loss(
        Classification(rest_weight=0.4), task_type="binary", targets_NT=targets_NT[:, :1]
    )
    torch.testing.assert_close(only(pred_NT[:, :1], targets_NT[:, :1]), rows_NT[:, 0].mean())


def test_classes_of_one_label_have_no_rest() -> None:
    with pytest.raises(UserError, match=r"rest_weight is 0\.5"):
        value(Classification(rest_weight=0.5), "multiclass", *2 * [labels("multiclass")])


@pytest.mark.parametrize("weight", ("none", "balanced"))
@pytest.mark.parametrize("task_type", TYPES)
def test_the_first_bias_is_where_the_loss_of_a_constant_is_least(
    task_type: str, weight: str
) -> None:
    targets_NT = labels(task_type)
    part = Classification(class_weight=weight)
    bias_T = first_bias(part, task_type, targets_NT).requires_grad_()
    value(part, task_type, bias_T.expand(targets_NT.shape), targets_NT).backward()
    assert bias_T.grad is not None
    assert bias_T.grad.abs().max() < 1e-6


def test_classes_are_not_standardised() -> None:
    mean_T, std_T = target_scale(labels("multilabel"), "none")
    assert mean_T.tolist() == [0] * OUTPUTS
    assert std_T.tolist() == [1] * OUTPUTS


# --- drawing rows


def test_rows_are_drawn_by_their_rarest_label() -> None:
    # 24 rows of the first class, 12 of the second, 2 of both, 2 of none.
    targets_NT = torch.tensor([[1.0, 0]] * 24 + [[0, 1.0]] * 12 + [[1.0, 1]] * 2 + [[0.0, 0]] * 2)
    over_N, under_N = (sampling_weights(targets_NT, name) for name in ("over", "under"))
    assert over_N is not None and under_N is not None
    expected = [1] * 24 + [26 / 14] * 14 + [10] * 2
    assert over_N.tolist() == pytest.approx(expected)
    assert under_N.tolist() == pytest.approx(expected[:-2] + [13] * 2)
    assert sampling_weights(targets_NT, "none") is None


@pytest.mark.parametrize("task_type", ("binary", "multiclass"))
def test_classes_drawn_under_come_alike(task_type: str) -> None:
    targets_NT = labels(task_type)
    weights_N = sampling_weights(targets_NT, "under")
    assert weights_N is not None
    share_T = weights_N @ targets_NT.numpy() / weights_N.sum()
    classes = 2 if task_type == "binary" else CLASSES
    np.testing.assert_allclose(share_T, 1 / classes, rtol=1e-5)
