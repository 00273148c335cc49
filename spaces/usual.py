"""Usual choices: what tasks have in common in their search spaces, so that each states only what
is its own. Evidence for ranges and defaults stands in docs/decisions.md."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from spaces.backbones import HUB, family, side_of
from spaces.means import Means
from spaces.parts import Classification, Regression, part_of
from spaces.recipe import PROBES, STAINS, TTA, Augment, Recipe
from spaces.space import Choose, Space

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

# Networks that have seen much pathology. The hub gives some of them only to whom their owners know;
# what cannot be had is skipped with a line. Their features serve as they are.
PATHOLOGY = (
    "hf-hub:1aurent/vit_small_patch8_224.lunit_dino",
    "hf-hub:1aurent/vit_base_patch16_224.owkin_pancancer",
    "hf-hub:MahmoodLab/uni",
)

# Learning-rate ranges (low, high, default) by weights and family. Pretrained: competitors' sweeps
# (best band 1.7e-4..8e-4 for CNNs, transformers a decade lower). Random: own runs.
LEARNING_RATES = {
    ("pretrained", "cnn"): (1e-4, 2e-3, 5e-4),
    ("pretrained", "transformer"): (1e-5, 3e-4, 5e-5),
    ("random", "cnn"): (1e-3, 4e-2, 8e-3),
    ("random", "transformer"): (1e-4, 3e-3, 5e-4),
}


def usual_backbones(gpu: bool) -> tuple[str, ...]:
    return GPU_BACKBONES if gpu else CPU_BACKBONES


def choose_core(choose: Choose, means: Means, tta: Sequence[int] = TTA) -> dict[str, Any]:
    """The fields of a Recipe that do not hang on what is in the images; `tta`: what may be chosen,
    which is 1 where a flipped image is no image of the same kind."""
    weights = "pretrained" if means.pretrained else "random"
    # Fine-tuned networks gain from SiLU and dropout before the last layer (write-up 000); networks
    # trained from random weights on few rows do not.
    usual_head, usual_drop = ("activation", 0.2) if means.pretrained else ("linear", 0.0)
    # Few rows want many steps; on many, small batches waste most of a step on its overhead.
    batch = 32 if means.gpu or means.train_rows >= 1000 else 16
    batches = [b for b in (16, 32, 64, 128) if 4 * b <= max(means.train_rows, 64)]
    backbone = choose.pick("backbone", means.backbones, means.backbones[0])
    kind = family(backbone)
    size = side_of(backbone, 0) or choose.pick(
        "image_size", means.image_sizes, means.image_sizes[0]
    )
    # What was learned on ImageNet expects its statistics; what starts from nothing learns sooner
    # from the data's own (docs/decisions.md).
    normalise = "imagenet" if means.pretrained else "train"
    # Frozen features tell something only where they were learned on something.
    probe = "none"
    if means.pretrained:
        first = "ridge" if backbone.startswith(HUB) else "none"
        probe = choose.pick("probe", PROBES, first)
    core: dict[str, Any] = {
        "backbone": backbone,
        "weights": weights,
        "image_size": size,
        "normalise": choose.pick("normalise", ("imagenet", "minmax", "train", "image"), normalise),
        "tta": choose.pick("tta", tta, tta[-1]),
        "epochs": means.epochs,
    }
    if probe != "none":
        return {**core, "probe": probe, "epochs": 1, "pca": choose.pick("pca", (0, 64, 256), 0)}
    low, high, usual = LEARNING_RATES[weights, kind]
    lr = choose.real(f"lr@{kind}", low, high, usual, log=True)
    optimizer = choose.pick("optimizer", ("adamw", "adam", "sgd"), "adamw")
    # SGD's useful rates lie about twenty times higher than Adam's.
    sgd_factor = choose.real("sgd_factor", 5, 50, 20, log=True) if optimizer == "sgd" else 1
    pooling = "avg"  # of a transformer: what timm does, often the class token
    if kind == "cnn":
        pooling = choose.pick("pooling@cnn", ("avg", "avgmax", "gem"), "avg")
    if means.pretrained:
        core["freeze"] = choose.pick("freeze", ("none", "last_layer", "last_block"), "none")
        core["head_warmup"] = choose.pick("head_warmup", (0.0, 1.0, 2.0), 0.0)
    if means.pretrained and kind == "transformer":
        core["layer_decay"] = choose.real("layer_decay@transformer", 0.65, 0.95, 0.8)
    averaging = choose.pick("average", ("ema.99", "ema.95", "ema.995", "swa", "none"), "ema.99")
    return {
        **core,
        "pooling": pooling,
        "head": choose.pick("head", ("linear", "activation", "mlp"), usual_head),
        "activation": choose.pick("activation", ("silu", "relu", "gelu"), "silu"),
        "activation_backbone": kind == "cnn"
        and choose.pick("activation_backbone@cnn", (False, True), False),
        "drop": choose.real("drop", 0, 0.5, usual_drop),
        "drop_path": choose.real("drop_path@transformer", 0, 0.3, 0.1)
        if kind == "transformer"
        else 0.0,
        "optimizer": optimizer,
        "lr": lr * sgd_factor,
        "head_lr_mult": choose.pick("head_lr_mult", (1, 3, 10), 1),
        "weight_decay": choose.real("weight_decay", 1e-6, 1e-1, 1e-2, log=True),
        "batch_size": choose.pick("batch_size", batches, batch),
        "schedule": choose.pick(
            "schedule", ("cosine", "onecycle", "exponential", "plateau"), "cosine"
        ),
        "ema": float(averaging[3:]) if averaging.startswith("ema") else 0.0,
        "swa": 0.25 if averaging == "swa" else 0.0,
    }


def choose_augment(
    choose: Choose, *, flips: bool = True, turns: bool = True, stains: bool = False, **more: Any
) -> Augment:
    """Augmentations of images that may be flipped and turned, or not; `more` goes to Augment.

    Crops are off unless chosen: they hurt (write-up 001).
    """
    colour = choose.pick("colour", (0.0, 0.1, 0.2), 0.0)
    mixing = choose.pick("mixing", ("none", "mixup.2", "mixup.4", "cutmix1"), "none")
    return Augment(
        flip=flips,
        rot90=turns,
        brightness=colour,
        contrast=colour,
        saturation=colour if stains else 0.0,
        hue=choose.pick("hue", (0.0, 0.03, 0.1), 0.0) if stains else 0.0,
        hed=choose.pick("hed", (0.0, 0.03), 0.0) if stains else 0.0,
        rotate=choose.pick("rotate", (0.0, 15.0, 45.0) if turns else (0.0, 5.0, 15.0), 0.0),
        shift=0.0 if turns else choose.pick("shift", (0.0, 0.05, 0.1), 0.0),
        crop=choose.pick("crop", (1.0, 0.8), 1.0),
        mixup=float(mixing[5:]) if mixing.startswith("mixup") else 0.0,
        cutmix=1.0 if mixing == "cutmix1" else 0.0,
        **more,
    )


def choose_regression(choose: Choose, losses: Sequence[str], usual: str) -> Regression:
    """How values are learned; `losses` may be searched, `usual` comes first."""
    loss = choose.pick("loss", losses, usual)
    return Regression(
        loss=loss,
        huber_delta=choose.real("huber_delta", 0.25, 2, 1, log=True) if loss == "huber" else 1.0,
        pearson_weight=choose.real("pearson_weight", 0.05, 5, 1.0, log=True)
        if "pearson" in loss
        else 0.5,
        target=choose.pick("target", ("zscore", "raw"), "zscore"),
    )


def choose_classification(choose: Choose, **more: Any) -> Classification:
    """How classes are learned; `more` goes to Classification."""
    loss = choose.pick("loss", ("cross_entropy", "focal", "asymmetric"), "cross_entropy")
    return Classification(
        loss=loss,
        gamma=choose.real("gamma", 0.5, 4, 2) if loss != "cross_entropy" else 2.0,
        label_smoothing=choose.pick("label_smoothing", (0.0, 0.05, 0.1), 0.0),
        class_weight=choose.pick("class_weight", ("none", "balanced"), "none"),
        sampler=choose.pick("sampler", ("none", "over", "under"), "none"),
        **more,
    )


def usual_first(means: Means) -> list[dict[str, Any]]:
    """Recipes that start well on most images."""
    if means.pretrained:
        return [
            {"backbone": "resnet50", "lr": 3e-4},
            {"backbone": "efficientnet_b0", "lr": 1e-3},
            {"backbone": "convnext_tiny", "lr": 1e-4},
            {"backbone": "swinv2_tiny_window8_256", "lr": 5e-5},
        ]
    return [
        {"backbone": "test_resnet", "lr": 8e-3},
        {"backbone": "test_efficientnet", "lr": 6e-3},
        {"backbone": "resnet10t", "lr": 4e-3},
    ]


def offered(recipes: Iterable[Mapping[str, Any]], means: Means) -> list[Mapping[str, Any]]:
    """Those of the recipes whose backbone may be used."""
    return [recipe for recipe in recipes if recipe["backbone"] in means.backbones]


def fusion_of(choose: Choose, means: Means, core: Mapping[str, Any]) -> dict[str, Any]:
    """How a row's views become one; nothing is asked where there is one view. A probe learns no
    fusion, and a grid needs a network that takes any shape."""
    if means.views == 1:
        return {}
    if "probe" in core:
        return {"fusion": choose.pick("fusion@probe", ("mean", "max", "concat"), "mean")}
    backbone = core["backbone"]
    options = ["attention", "mean", "max", "transformer", "concat", "stack"]
    if side_of(backbone, 0) == 0 and family(backbone) == "cnn":
        options.append("grid")
    return {"fusion": choose.pick(f"fusion@{family(backbone)}", options, "attention")}


def usual_space(
    task_type: str,
    *,
    first: Callable[[Means], Iterable[Mapping[str, Any]]] = usual_first,
    part: Callable[[Choose], Any] | None = None,
    flips: bool = True,
    turns: bool = True,
    stains: bool = False,
) -> Callable[[Means], Space]:
    """The space of a task: how its values or classes are learned (`part`; None: as is usual for the
    type), whether its images may be flipped and turned, and whether their colours are stains."""

    def choose_part(choose: Choose) -> Any:
        if part is not None:
            return part(choose)
        if task_type == "regression":
            return choose_regression(choose, ("mse", "huber"), "mse")
        return choose_classification(choose)

    def space(means: Means) -> Space:
        def define(choose: Choose) -> Recipe:
            core = choose_core(choose, means, TTA if turns else TTA[:2] if flips else TTA[:1])
            core["channels"] = means.channels
            if means.channels > 3:  # more need a new stem, made from the pretrained one
                core["channels"] = choose.pick("channels", (means.channels, 3), means.channels)
            core |= fusion_of(choose, means, core)
            if "probe" in core:
                return Recipe(**core, task=part_of(task_type)())
            return Recipe(
                **core,
                stain=choose.pick("stain", STAINS, "none") if stains else "none",
                augment=choose_augment(choose, flips=flips, turns=turns, stains=stains),
                task=choose_part(choose),
            )

        return Space(define, first=offered(first(means), means))

    return space
