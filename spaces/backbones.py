"""Facts about backbones that a space and a plan need before any network is built."""

import re

# Images per second in training on one CPU core at 64 px: batch 32, float32, torch 2.15, an idle
# core of an AMD EPYC (docs/decisions.md). The plan prices recipes with it before anything has run.
CPU_IMAGES_PER_SECOND_64 = {
    "test_efficientnet": 685,
    "test_resnet": 559,
    "lcnet_050": 687,
    "mobilenetv3_small_050": 759,
    "resnet10t": 137,
    "resnet18": 93,
}

# Multiply-accumulates of a forward pass at the given side, in 10^9: timm's published tables.
GMACS = {
    "resnet18": (1.8, 224),
    "resnet50": (4.1, 224),
    "seresnet50": (4.1, 224),
    "efficientnet_b0": (0.4, 224),
    "efficientnet_b3": (1.6, 288),
    "tf_efficientnetv2_s": (5.4, 300),
    "tf_efficientnet_b7": (38.3, 600),
    "inception_resnet_v2": (13.2, 299),
    "convnext_tiny": (4.5, 224),
    "swinv2_tiny_window8_256": (6.0, 256),
    "vit_small_patch14_dinov2": (6.1, 224),
    "eva02_small_patch14_224": (6.1, 224),
    "maxvit_tiny_tf_224": (5.4, 224),
    "regnety_016": (1.6, 224),
    "densenet121": (2.9, 224),
    "densenet169": (3.4, 224),
}

# The side that a network with position embeddings or fixed windows is built for.
FIXED_SIZE = {
    "swinv2_tiny_window8_256": 256,
    "vit_small_patch14_dinov2": 224,
    "eva02_small_patch14_224": 224,
    "maxvit_tiny_tf_224": 224,
}

_HUB_SIDE = 224  # pixels
_TRANSFORMERS = ("vit", "swin", "eva", "maxvit", "deit", "beit", "cait", "test_vit")


HUB = "hf-hub:"  # before the names of models that only the hub knows


def architecture(backbone: str) -> str:
    """The timm name without its pretrained tag: "convnext_tiny.fb_in22k" -> "convnext_tiny"."""
    return backbone.split(".")[0]


def family(backbone: str) -> str:
    """ "transformer" or "cnn": learning rates and regularisers differ between the two."""
    vision = backbone.startswith(HUB)  # foundation models of pathology are vision transformers
    return "transformer" if vision or architecture(backbone).startswith(_TRANSFORMERS) else "cnn"


def series(backbone: str) -> str:
    """The name that a backbone's sizes and versions share: resnet, efficientnet, vit, ..."""
    plain = re.sub("^(hf-hub:[^/]*/|(test|tf|legacy)_)", "", architecture(backbone))
    found = re.match(r"[a-z]+?(?=v?\d|_|$)", plain)
    return found[0] if found else plain


def side_of(backbone: str, usual: int) -> int:
    """The side in pixels at which a backbone sees images: its own where it is fixed."""
    return _HUB_SIDE if backbone.startswith(HUB) else FIXED_SIZE.get(architecture(backbone), usual)


def relative_cost(backbone: str, image_size: int, gpu: bool) -> float:
    """Training cost of one image, in units of test_efficientnet at 64 px (CPU) or of resnet18 at
    224 px (GPU). A backbone without an entry counts as a resnet50: dear, yet not excluded."""
    name = architecture(backbone)
    if not gpu and name in CPU_IMAGES_PER_SECOND_64:
        reference = CPU_IMAGES_PER_SECOND_64["test_efficientnet"]
        return reference / CPU_IMAGES_PER_SECOND_64[name] * (image_size / 64) ** 2
    gmacs, side = GMACS.get(name, GMACS["resnet50"])
    gpu_cost = gmacs / GMACS["resnet18"][0] * (image_size / side) ** 2
    if gpu:
        return gpu_cost
    # From the GPU's unit to the CPU's, through resnet18, which is in both tables.
    return gpu_cost * relative_cost("resnet18", 224, gpu=False)
