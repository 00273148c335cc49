"""aneurysm: presence and 21 locations of aneurysms from 8 angiographic views (k-ium 2023).

The official scores are the AUROC of presence and the element-wise accuracy of the locations. All
zeros have .9712 of the latter on the competition's data, so the search maximises
.7 AUROC(presence) + .3 mean AUROC(locations with positives enough) and reports the official two.
"""

from pathlib import Path
from typing import Any

from spaces.layout import Layout, Submission
from spaces.means import Means
from spaces.parts import Classification
from spaces.recipe import Augment, Recipe
from spaces.space import Choose, Space
from spaces.task import Mirror, Task
from spaces.usual import CPU_BACKBONES, choose_classification, choose_core, fusion_of, offered

VIEWS = ("LI-A", "LI-B", "LV-A", "LV-B", "RI-A", "RI-B", "RV-A", "RV-B")
LOCATIONS = (
    "L_ICA", "R_ICA", "L_PCOM", "R_PCOM", "L_AntChor", "R_AntChor", "L_ACA", "R_ACA", "L_ACOM",
    "R_ACOM", "L_MCA", "R_MCA", "L_VA", "R_VA", "L_PICA", "R_PICA", "L_SCA", "R_SCA", "BA",
    "L_PCA", "R_PCA",
)  # fmt: skip

GPU_BACKBONES = (
    "resnet18",
    "resnet50",
    "resnet34",
    "resnet26d",
    "efficientnet_b0",
    "efficientnet_b2",
    "densenet121",
    "regnety_008",
    "convnext_nano",
    "mobilenetv3_large_100",
)


def space(means: Means) -> Space:
    """Nothing that breaks what lies between the views: no crops, flips or turns of single views."""

    def define(choose: Choose) -> Recipe:
        core = choose_core(choose, means, tta=(1,))
        core |= fusion_of(choose, means, core)
        if "probe" in core:
            return Recipe(**core, task=Classification())
        grey = choose.pick("channels", (1, 3), 1 if core["weights"] == "random" else 3)
        contrast = choose.pick("contrast", (0.0, 0.1, 0.2, 0.3), 0.1)
        return Recipe(
            **core,
            channels=grey,
            augment=Augment(
                flip=False,
                rot90=False,
                brightness=contrast,
                contrast=contrast,
                rotate=choose.pick("rotate", (0.0, 5.0, 15.0), 5.0),
                shift=choose.pick("shift", (0.0, 0.05, 0.1), 0.05),
                scale=choose.pick("scale", (0.0, 0.1), 0.0),
                mirror=means.views == len(VIEWS) and choose.pick("mirror", (True, False), True),
                view_drop=choose.pick("view_drop", (0.0, 0.1, 0.3), 0.0),
                mixup=choose.pick("mixup", (0.0, 0.2, 0.4), 0.0),
            ),
            task=choose_classification(
                choose,
                rest_weight=choose.real("rest_weight", 0.05, 2, 0.5, log=True)
                if means.outputs > 1
                else None,
            ),
        )

    return Space(define, first=offered(first_recipes(means), means))


def first_recipes(means: Means) -> list[dict[str, Any]]:
    """Small networks: large ones did not learn from a thousand patients (write-up 003)."""
    if means.pretrained:
        return [
            {"backbone": "resnet18", "lr": 2e-4, "fusion": "attention"},
            {"backbone": "resnet50", "lr": 1e-4, "fusion": "attention"},
            {"backbone": "efficientnet_b0", "lr": 5e-4, "fusion": "stack", "channels": 1},
            {"backbone": "resnet18", "lr": 2e-4, "fusion": "max"},
        ]
    return [
        {"backbone": "test_resnet", "lr": 8e-3, "fusion": "mean"},
        {"backbone": "test_resnet", "lr": 8e-3, "fusion": "attention"},
        {"backbone": "test_efficientnet", "lr": 6e-3, "fusion": "max"},
        {"backbone": "test_resnet", "lr": 8e-3, "fusion": "stack"},
        {"backbone": "resnet10t", "lr": 4e-3, "fusion": "mean"},
    ]


def _other_side(name: str) -> str:
    return {"L": "R", "R": "L"}[name[0]] + name[1:]


def _images(folder: str) -> tuple[str, ...]:
    """The competition's JPEGs, also where they were moved to a folder of their own; or PNGs."""
    names = (f"{folder}/{{id}}{{view}}", f"{folder}/images/{{id}}{{view}}")
    return tuple(f"{name}.{ending}" for ending in ("jpg", "png") for name in names)


def _write_sample(folder: Path, seed: int) -> None:
    from spaces.samples.aneurysm import write_sample

    write_sample(folder, seed)


TASK = Task(
    name="aneurysm",
    task_type="multilabel",
    layout=Layout(
        train="train_set/train.csv",
        test="test_set/test.csv",
        sample_submission="",
        id_column="Index",
        id_width=4,
        image_columns=(),
        train_images=_images("train_set"),
        test_images=_images("test_set"),
        views=VIEWS,
        targets=("Aneurysm",),
        optional_targets=LOCATIONS,
        submission=Submission(file="output.csv", decided="rest"),
    ),
    metric="presence_locations",
    backbones=lambda gpu: GPU_BACKBONES if gpu else CPU_BACKBONES,
    space=space,
    mirror=Mirror(
        views=tuple(VIEWS.index(_other_side(view)) for view in VIEWS),
        targets={name: _other_side(name) for name in LOCATIONS if name != "BA"},
    ),
    write_sample=_write_sample,
)
