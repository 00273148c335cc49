"""The views of a row become one: their images before the backbone, or their features after it.

The views of a sample stand next to each other in a batch, so that the backbone sees them as a batch
of B x V images and none of this loops over views.

Shapes: B samples, V views, C channels, H W height and width, F features of a view, L hidden units.
"""

import torch
from torch import Tensor, nn

ON_IMAGES = ("stack", "grid")
_HIDDEN = 128  # units of the gates
_HEADS = (8, 4, 6, 5, 7, 3, 2, 1)


def stack_views(images_XCHW: Tensor, views: int) -> Tensor:
    """(B x V, C, H, W) -> (B, V x C, H, W), the channels of a view side by side."""
    return _in_memory_of(images_XCHW, images_XCHW.unflatten(0, (-1, views)).flatten(1, 2))


def grid_views(images_XCHW: Tensor, views: int) -> Tensor:
    """(B x V, C, H, W) -> (B, C, 2 H, V / 2 W), the first half of the views above the second; of an
    odd number of views all in one row."""
    rows, columns = grid_shape(views)
    parts_BRQCHW = images_XCHW.unflatten(0, (-1, rows, columns))
    images_BCRHQW = parts_BRQCHW.permute(0, 3, 1, 4, 2, 5)
    return _in_memory_of(images_XCHW, images_BCRHQW.flatten(4, 5).flatten(2, 3))


def grid_shape(views: int) -> tuple[int, int]:
    """Rows and columns of the grid."""
    rows = 1 if views % 2 else 2
    return rows, views // rows


def _in_memory_of(before: Tensor, after: Tensor) -> Tensor:
    """`after`, channels last where `before` is."""
    last = before.is_contiguous(memory_format=torch.channels_last)
    return after.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


class Mean(nn.Module):
    """(B x V, F) -> (B, F)."""

    def __init__(self, views: int) -> None:
        super().__init__()
        self.views = views

    def forward(self, features_XF: Tensor) -> Tensor:
        return features_XF.unflatten(0, (-1, self.views)).mean(dim=1)


class Max(Mean):
    """(B x V, F) -> (B, F), each feature by the view that has most of it."""

    def forward(self, features_XF: Tensor) -> Tensor:
        return features_XF.unflatten(0, (-1, self.views)).amax(dim=1)


class Concat(Mean):
    """(B x V, F) -> (B, V x F), so that the head has weights of its own for each view."""

    def forward(self, features_XF: Tensor) -> Tensor:
        return features_XF.unflatten(0, (-1, self.views)).flatten(1, 2)


class Attention(nn.Module):
    """(B x V, F) -> (B, F), a mean with weights that the views' features decide.

    Gated attention of Ilse et al. 2018 (arXiv:1802.04712), on features to which what is learned of
    each view is added. Starts as the plain mean.
    """

    def __init__(self, features: int, views: int) -> None:
        super().__init__()
        self.embedding_VF = nn.Parameter(torch.zeros(views, features))
        self.value = nn.Linear(features, _HIDDEN)
        self.gate = nn.Linear(features, _HIDDEN)
        self.score = nn.Linear(_HIDDEN, 1, bias=False)  # a bias would change no weight
        nn.init.zeros_(self.score.weight)

    def forward(self, features_XF: Tensor) -> Tensor:
        views_BVF = self._placed(features_XF)
        return (self._weights(views_BVF) * views_BVF).sum(dim=1)

    def weights(self, features_XF: Tensor) -> Tensor:
        """(B, V), what each view counts; they sum to one."""
        return self._weights(self._placed(features_XF)).squeeze(2)

    def _placed(self, features_XF: Tensor) -> Tensor:
        return features_XF.unflatten(0, (-1, len(self.embedding_VF))) + self.embedding_VF

    def _weights(self, views_BVF: Tensor) -> Tensor:
        hidden_BVL = self.value(views_BVF).tanh() * self.gate(views_BVF).sigmoid()
        return self.score(hidden_BVL).softmax(dim=1)


class Transformer(nn.Module):
    """(B x V, F) -> (B, F): the views look at each other once, then their mean."""

    def __init__(self, features: int, views: int, drop: float = 0.1) -> None:
        super().__init__()
        self.embedding_VF = nn.Parameter(torch.zeros(views, features))
        heads = next(n for n in _HEADS if features % n == 0)
        # As wide as its input: a backbone's features are many and a row's views are few.
        self.layer = nn.TransformerEncoderLayer(
            features, heads, features, drop, "gelu", batch_first=True, norm_first=True
        )

    def forward(self, features_XF: Tensor) -> Tensor:
        views_BVF = features_XF.unflatten(0, (-1, len(self.embedding_VF))) + self.embedding_VF
        return self.layer(views_BVF).mean(dim=1)


def make_fusion(kind: str, features: int, views: int) -> nn.Module:
    """The module (B x V, F) -> (B, F') of a fusion that is not ON_IMAGES."""
    if kind in ("attention", "transformer"):
        return (Attention if kind == "attention" else Transformer)(features, views)
    return {"mean": Mean, "max": Max, "concat": Concat}[kind](views)
