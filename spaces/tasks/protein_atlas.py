"""protein_atlas: where a protein lies in the cell, 19 classes (Human Protein Atlas, Kaggle 2021).

Image-level model: four filters are the channels of one image, the score is the mean average
precision over classes. Kaggle scores cells; until cells are segmented, a submission gives each
image's confidences to one mask of the whole image, which keeps the competition's format.
"""

from pathlib import Path
from typing import Any

from spaces.layout import Layout, Submission
from spaces.means import Means
from spaces.task import Task
from spaces.usual import CPU_BACKBONES, usual_space

CHANNELS = ("red", "green", "blue", "yellow")  # microtubules, the protein, nuclei, ER

GPU_BACKBONES = (
    "resnet50",
    "efficientnet_b0",
    "seresnext26t_32x4d",
    "seresnet50",
    "efficientnet_b3",
    "resnet101",
    "densenet121",
    "tf_efficientnetv2_s",
    "resnest50d",
    "convnext_tiny",
    "swinv2_tiny_window8_256",
)


def first_recipes(means: Means) -> list[dict[str, Any]]:
    if means.pretrained:
        return [
            {"backbone": "resnet101", "lr": 3e-4},
            {"backbone": "efficientnet_b0", "lr": 1e-3, "loss": "focal"},
            {"backbone": "seresnext26t_32x4d", "lr": 1e-4},
            {"backbone": "densenet121", "lr": 3e-4, "sampler": "over"},
            {"backbone": "efficientnet_b3", "lr": 1e-3, "mixing": "cutmix1", "loss": "focal"},
        ]
    return [
        {"backbone": "test_resnet", "lr": 8e-3},
        {"backbone": "test_efficientnet", "lr": 6e-3},
        {"backbone": "test_resnet", "lr": 8e-3, "sampler": "over"},
        {"backbone": "test_resnet", "lr": 8e-3, "loss": "asymmetric"},
        {"backbone": "resnet10t", "lr": 4e-3},
    ]


def _write_sample(folder: Path, seed: int) -> None:
    from spaces.samples.protein_atlas import write_sample

    write_sample(folder, seed)


TASK = Task(
    name="protein_atlas",
    task_type="multilabel",
    layout=Layout(
        test="sample_submission.csv",
        sample_submission="",
        image_columns=(),
        train_images=("train/{id}_{channel}.png",),
        test_images=("test/{id}_{channel}.png",),
        channels=CHANNELS,
        label_column="Label",
        classes=tuple(map(str, range(19))),
        submission=Submission(form="cells"),
    ),
    metric="average_precision",
    backbones=lambda gpu: GPU_BACKBONES if gpu else CPU_BACKBONES,
    space=usual_space("multilabel", first=first_recipes),
    write_sample=_write_sample,
)
