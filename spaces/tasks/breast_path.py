"""breast_path: benign or malignant from one H&E image of the breast (KHD 2020, track B).

Score = mean of accuracy, PPV, sensitivity, specificity, NPV and F1, each with 1e-3 added to its
divisor, on hard labels; the threshold is free and is chosen out of fold. 1 is the positive class.
"""

from pathlib import Path
from typing import Any

from spaces.layout import Layout, Submission
from spaces.means import Means
from spaces.task import Task
from spaces.usual import CPU_BACKBONES, PATHOLOGY, usual_space

# The write-ups' own, the plain ones among them: they did best on modest data.
GPU_BACKBONES = (
    "resnet50",
    "resnet18",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_b3",
    "seresnext50_32x4d",
    "resnext50_32x4d",
    "tf_efficientnetv2_s",
    "rexnet_200",
    "vgg16_bn",
    "mobilenetv2_100",
    "inception_v3",
    "xception41",
    "convnext_tiny",
    "swinv2_tiny_window8_256",
    *PATHOLOGY,
)


def first_recipes(means: Means) -> list[dict[str, Any]]:
    """The write-ups' own when there are pretrained weights."""
    if means.pretrained:
        return [
            # 2nd place: ResNet-50 at 299 px and more, flips only, Adam 1e-4, exponential decay.
            {"backbone": "resnet50", "lr": 1e-4, "optimizer": "adam", "schedule": "exponential"},
            # 5th place: label smoothing .1, flips and quarter turns.
            {"backbone": "resnet18", "lr": 3e-4, "label_smoothing": 0.1},
            {"backbone": "efficientnet_b3", "lr": 5e-4, "label_smoothing": 0.1},
            {"backbone": "rexnet_200", "lr": 3e-4},
            {"backbone": "densenet121", "lr": 3e-4},
            {"backbone": "convnext_tiny", "lr": 1e-4},
        ]
    return [
        {"backbone": "test_resnet", "lr": 8e-3},
        {"backbone": "test_efficientnet", "lr": 6e-3},
        {"backbone": "test_resnet", "lr": 4e-3, "label_smoothing": 0.1},
        {"backbone": "resnet10t", "lr": 4e-3},
    ]


def _write_sample(folder: Path, seed: int) -> None:
    from spaces.samples.breast_path import write_sample

    write_sample(folder, seed)


TASK = Task(
    name="breast_path",
    task_type="binary",
    layout=Layout(
        train="train/train_label",
        test="test/test_data",
        sample_submission="",
        columns=("key", "label"),
        id_column="key",
        image_columns=(),
        train_images=("train/train_data/{id}.png",),
        test_images=("test/test_data/{id}.png",),
        targets=("label",),
        submission=Submission(form="lines", file="prediction.txt", decided="all"),
    ),
    metric="khd",
    backbones=lambda gpu: GPU_BACKBONES if gpu else CPU_BACKBONES,
    # Images of one laboratory: changes of stain are worth a try, no more.
    space=usual_space("binary", first=first_recipes, stains=True),
    write_sample=_write_sample,
)
