"""gene_expr: expression of many genes from one H&E tile (Dacon 236382, MAI 2024).

Score = max((MeanCorr_Cells + MaxCorr_Genes + HEG_Corr + HVG_Corr) / 4, 0), higher is better; the
sizes of the gene lists were never published: 50 and 50 by sum and variance, as in BLEEP.
"""

from pathlib import Path
from typing import Any

from spaces.means import Means
from spaces.parts import REGRESSION_LOSSES, Regression
from spaces.space import Choose
from spaces.task import Task
from spaces.usual import (
    CPU_BACKBONES,
    GPU_BACKBONES,
    PATHOLOGY,
    choose_regression,
    usual_space,
)


def part(choose: Choose) -> Regression:
    return choose_regression(choose, REGRESSION_LOSSES, "mse_pearson_both")


def first_recipes(means: Means) -> list[dict[str, Any]]:
    """Recipes that did well before: the write-ups' own when there are pretrained weights, else what
    did well from random weights on small tiles."""
    if means.pretrained:
        return [
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
    return [
        {"backbone": "test_resnet", "lr": 1.6e-2, "pearson_weight": 2.0},
        {"backbone": "test_resnet", "lr": 8e-3, "pearson_weight": 0.5},
        {"backbone": "test_efficientnet", "lr": 6e-3, "pearson_weight": 0.5},
        {"backbone": "test_resnet", "lr": 4e-3, "loss": "mse"},
        {"backbone": "resnet10t", "lr": 4e-3},
    ]


def _write_sample(folder: Path, seed: int) -> None:
    from spaces.samples.gene_expr import write_sample

    write_sample(folder, seed)


TASK = Task(
    name="gene_expr",
    metric="gene_expr",
    metric_args={"heg_n": 50, "hvg_n": 50, "hvg_stat": "var"},
    backbones=lambda gpu: (*GPU_BACKBONES, *PATHOLOGY) if gpu else CPU_BACKBONES,
    # Stain carries signal here: jitter cost .02 of the score on real tiles (docs/decisions.md), so
    # all changes of colour are off unless chosen.
    space=usual_space("regression", first=first_recipes, part=part, stains=True),
    write_sample=_write_sample,
)
