"""gene_expr: expression of many genes from one H&E tile (Dacon 236382, MAI 2024).

Score = max((MeanCorr_Cells + MaxCorr_Genes + HEG_Corr + HVG_Corr) / 4, 0), higher is better; the
sizes of the gene lists were never published: 50 and 50 by sum and variance, as in BLEEP.
"""

from pathlib import Path

from spaces.means import Means
from spaces.parts import REGRESSION_LOSSES, Regression
from spaces.recipe import Recipe
from spaces.space import Choose, Space
from spaces.task import Task
from spaces.usual import (
    CPU_BACKBONES,
    GPU_BACKBONES,
    PATHOLOGY,
    choose_augment,
    choose_core,
    choose_regression,
)


def space(means: Means) -> Space:
    """The search space under these means (tasks in tables: docs/decisions.md)."""

    def define(choose: Choose) -> Recipe:
        core = choose_core(choose, means)
        if "probe" in core:
            return Recipe(**core, task=Regression())
        return Recipe(
            **core,
            stain=choose.pick("stain", ("none", "macenko", "reinhard"), "none"),
            # Stain carries signal here: jitter cost .02 of the score on real tiles
            # (docs/decisions.md), so all colour changes are off unless chosen.
            augment=choose_augment(choose, stains=True),
            task=choose_regression(choose, REGRESSION_LOSSES, "mse_pearson_both"),
        )

    return Space(define, first=first_recipes(means))


def first_recipes(means: Means) -> list[dict[str, object]]:
    """Recipes that did well before, on the backbones that may be used: the write-ups' own when
    there are pretrained weights, else what did well from random weights on small tiles."""
    if means.pretrained:
        known: list[dict[str, object]] = [
            # Write-up 000: five EfficientNet-B0 that differ by learning rate, SiLU in the head.
            {"backbone": "efficientnet_b0", "lr": 1e-3, "head": "activation", "activation": "silu"},
            {"backbone": "resnet50", "lr": 1e-3, "head": "linear"},
            # 25 Optuna trials by another competitor: 3.7e-4, SiLU + dropout 0.5 + linear.
            {"backbone": "inception_resnet_v2", "lr": 3.7e-4, "drop": 0.5},
            {"backbone": "efficientnet_b0", "lr": 3e-4, "loss": "mse_pearson_gene"},
            {"backbone": "densenet121", "lr": 5e-4},
            {"backbone": "swinv2_tiny_window8_256", "lr": 5e-5},
            *({"backbone": name, "probe": "ridge", "pca": 256} for name in PATHOLOGY),
        ]
    else:
        known = [
            {"backbone": "test_resnet", "lr": 1.6e-2, "pearson_weight": 2.0},
            {"backbone": "test_resnet", "lr": 8e-3, "pearson_weight": 0.5},
            {"backbone": "test_efficientnet", "lr": 6e-3, "pearson_weight": 0.5},
            {"backbone": "test_resnet", "lr": 4e-3, "loss": "mse"},
            {"backbone": "resnet10t", "lr": 4e-3},
        ]
    return [r for r in known if r["backbone"] in means.backbones]


def _write_sample(folder: Path, seed: int) -> None:
    from spaces.samples.gene_expr import write_sample

    write_sample(folder, seed)


TASK = Task(
    name="gene_expr",
    metric="gene_expr",
    metric_args={"heg_n": 50, "hvg_n": 50, "hvg_stat": "var"},
    backbones=lambda gpu: (*GPU_BACKBONES, *PATHOLOGY) if gpu else CPU_BACKBONES,
    space=space,
    write_sample=_write_sample,
)
