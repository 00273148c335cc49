"""What several views of a row cost: a training step on rows of 8 views against the same images as
rows of one view, by fusion. Both sides take turns in one process; the asked-for ratio is 1.05.

    python benchmarks/views.py
"""

import argparse
import platform
import time
from statistics import median

import torch

from search.model.backbone import Network, build_model
from spaces.recipe import FUSIONS, Recipe

VIEWS, ROWS, SIZE, OUTPUTS = 8, 8, 64, 22


def step(network: Network, images_XCHW: torch.Tensor) -> float:
    """Milliseconds of CPU time of a forward and a backward pass."""
    started = time.process_time()
    network(images_XCHW).square().mean().backward()
    network.zero_grad(set_to_none=True)
    return 1000 * (time.process_time() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", nargs="+", default=["test_resnet", "resnet10t"])
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="the smaller backbone, two turns")
    args = parser.parse_args()
    if args.quick:
        args.backbone, args.turns = args.backbone[:1], 2
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{platform.processor() or platform.machine()}, one thread, torch {torch.__version__}")
    print(f"{ROWS} rows of {VIEWS} views against {ROWS * VIEWS} rows of one, {SIZE} px")
    images_XCHW = torch.randn(ROWS * VIEWS, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    for backbone in args.backbone:
        single = build_model(Recipe(backbone=backbone, image_size=SIZE), OUTPUTS)
        print(f"\n{backbone:<20}{'ms':>8}{'ratio':>8}  (ratio: median of {args.turns} turns)")
        for fusion in FUSIONS:
            recipe = Recipe(backbone=backbone, image_size=SIZE, fusion=fusion)
            several = build_model(recipe, OUTPUTS, views=VIEWS)
            for network in (single, several):
                network.to(memory_format=torch.channels_last)
                step(network, images_XCHW)  # warm
            pairs = [(step(several, images_XCHW), step(single, images_XCHW))
                     for _ in range(args.turns)]  # fmt: skip
            ratio = median(a / b for a, b in pairs)
            print(f"  {fusion:<18}{median(a for a, _ in pairs):8.1f}{ratio:8.3f}")
        print(f"  {'one view':<18}{median(b for _, b in pairs):8.1f}")


if __name__ == "__main__":
    main()
