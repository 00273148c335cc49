"""gene_expr: expression of many genes from one H&E tile (Dacon 236382, MAI 2024).

Score = max((MeanCorr_Cells + MaxCorr_Genes + HEG_Corr + HVG_Corr) / 4, 0), higher is better; the
sizes of the gene lists were never published: 50 and 50 by sum and variance, as in BLEEP.
"""

from dataclasses import dataclass
from pathlib import Path

from spaces.backbones import FIXED_SIZE, architecture, family
from spaces.errors import UserError
from spaces.recipe import TTA, Augment, Recipe
from spaces.space import Choose, Space
from spaces.task import CsvLayout, Means, Task

LOSSES = ("mse", "huber", "mse_pearson_gene", "mse_pearson_cell", "mse_pearson_both")
TARGETS = ("zscore", "raw")

# What competitors used or wished for, small ones first. Large ones (b7) are for --backbone.
GPU_BACKBONES = (
    "resnet50",
    "efficientnet_b0",
    "resnet18",
    "efficientnet_b3",
    "seresnet50",
    "tf_efficientnetv2_s",
    "regnety_016",
    "densenet121",
    "convnext_tiny",
    "inception_resnet_v2",
    "swinv2_tiny_window8_256",
    "vit_small_patch14_dinov2",
    "eva02_small_patch14_224",
    "maxvit_tiny_tf_224",
)
CPU_BACKBONES = (
    "test_resnet",
    "test_efficientnet",
    "lcnet_050",
    "mobilenetv3_small_050",
    "resnet10t",
)


@dataclass(frozen=True, kw_only=True)
class GeneExpr:
    """The recipe's part that only this task has."""

    loss: str = "mse"
    huber_delta: float = 1.0  # in standard deviations of a gene
    pearson_weight: float = 0.5  # of the correlation term beside the squared error
    target: str = "zscore"  # "zscore": each gene to sd 1; "raw": one scale for all

    def __post_init__(self) -> None:
        faults = []
        if self.loss not in LOSSES:
            faults.append(f"task.loss is {self.loss!r}; known: {', '.join(LOSSES)}")
        if self.target not in TARGETS:
            faults.append(f"task.target is {self.target!r}; known: {', '.join(TARGETS)}")
        if self.huber_delta <= 0:
            faults.append(f"task.huber_delta is {self.huber_delta}; it must be positive")
        if self.pearson_weight < 0:
            faults.append(f"task.pearson_weight is {self.pearson_weight}; it must not be negative")
        if faults:
            raise UserError(faults)


# Learning-rate ranges (low, high, default) by weights and family. Pretrained: competitors' sweeps
# (best band 1.7e-4..8e-4 for CNNs, transformers a decade lower). Random: own runs.
LEARNING_RATES = {
    ("pretrained", "cnn"): (1e-4, 2e-3, 5e-4),
    ("pretrained", "transformer"): (1e-5, 3e-4, 5e-5),
    ("random", "cnn"): (1e-3, 4e-2, 8e-3),
    ("random", "transformer"): (1e-4, 3e-3, 5e-4),
}


def space(means: Means) -> Space:
    """The search space under these means (tasks in tables: docs/decisions.md)."""
    weights = "pretrained" if means.pretrained else "random"
    # Fine-tuned networks gain from SiLU and dropout before the last layer (write-up 000); networks
    # trained from random weights on few rows do not.
    usual_head, usual_drop = ("activation", 0.2) if means.pretrained else ("linear", 0.0)
    batches = [b for b in (16, 32, 64, 128) if 4 * b <= max(means.train_rows, 64)]

    def define(choose: Choose) -> Recipe:
        backbone = choose.pick("backbone", means.backbones, means.backbones[0])
        kind = family(backbone)
        fixed = FIXED_SIZE.get(architecture(backbone))
        size = fixed or choose.pick("image_size", means.image_sizes, means.image_sizes[0])
        low, high, usual = LEARNING_RATES[weights, kind]
        batch_size = choose.pick("batch_size", batches, 32 if means.gpu else 16)
        lr = choose.real(f"lr@{kind}", low, high, usual, log=True)
        optimizer = choose.pick("optimizer", ("adamw", "adam", "sgd"), "adamw")
        # SGD's useful rates lie about twenty times higher than Adam's.
        sgd_factor = choose.real("sgd_factor", 5, 50, 20, log=True) if optimizer == "sgd" else 1
        # Stain carries signal here: jitter cost .02 of the score on real tiles (docs/decisions.md).
        colour = choose.pick("colour", (0.0, 0.1, 0.2), 0.0)
        loss = choose.pick("loss", LOSSES, "mse_pearson_both")
        delta = choose.real("huber_delta", 0.25, 2, 1, log=True) if loss == "huber" else 1.0
        pearson = "pearson" in loss
        pooling = "avg"  # of a transformer: what timm does, often the class token
        if kind == "cnn":
            pooling = choose.pick("pooling@cnn", ("avg", "avgmax", "gem"), "avg")
        head = choose.pick("head", ("linear", "activation", "mlp"), usual_head)
        return Recipe(
            backbone=backbone,
            weights=weights,
            image_size=size,
            pooling=pooling,
            head=head,
            activation=choose.pick("activation", ("silu", "relu", "gelu"), "silu"),
            activation_backbone=kind == "cnn"
            and choose.pick("activation_backbone@cnn", (False, True), False),
            drop=choose.real("drop", 0, 0.5, usual_drop),
            drop_path=choose.real("drop_path@transformer", 0, 0.3, 0.1)
            if kind == "transformer"
            else 0.0,
            optimizer=optimizer,
            lr=lr * sgd_factor,
            head_lr_mult=choose.pick("head_lr_mult", (1, 3, 10), 1),
            weight_decay=choose.real("weight_decay", 1e-6, 1e-1, 1e-2, log=True),
            batch_size=batch_size,
            epochs=means.epochs,
            warmup=1.0,
            ema=choose.pick("ema", (0.0, 0.95, 0.99, 0.995), 0.99),
            tta=choose.pick("tta", TTA, 8),
            augment=Augment(
                flip=True,
                rot90=True,
                brightness=colour,
                contrast=colour,
                saturation=colour,
                hue=choose.pick("hue", (0.0, 0.03, 0.1), 0.0),
                rotate=choose.pick("rotate", (0.0, 15.0, 45.0), 0.0),
                crop=choose.pick("crop", (1.0, 0.8), 1.0),
                mixup=choose.pick("mixup", (0.0, 0.2, 0.4), 0.0),
            ),
            task=GeneExpr(
                loss=loss,
                huber_delta=delta,
                pearson_weight=choose.real("pearson_weight", 0.05, 5, 1.0, log=True)
                if pearson
                else 0.5,
                target=choose.pick("target", TARGETS, "zscore"),
            ),
        )  # fmt: skip

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
            {"backbone": "inception_resnet_v2", "lr": 3.7e-4, "drop": 0.5, "batch_size": 32},
            {"backbone": "efficientnet_b0", "lr": 3e-4, "loss": "mse_pearson_gene"},
            {"backbone": "densenet121", "lr": 5e-4},
            {"backbone": "swinv2_tiny_window8_256", "lr": 5e-5},
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
    layout=CsvLayout(),
    metric="gene_expr",
    metric_args={"heg_n": 50, "hvg_n": 50, "hvg_stat": "var"},
    part=GeneExpr,
    backbones=lambda gpu: GPU_BACKBONES if gpu else CPU_BACKBONES,
    space=space,
    write_sample=_write_sample,
)
