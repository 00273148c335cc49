"""What training costs, learned from the run."""

from search.policy.costs import Costs
from spaces.backbones import relative_cost


def test_nothing_is_priced_before_anything_was_seen() -> None:
    assert Costs(gpu=False).epoch("resnet18", 64) is None


def test_the_unseen_is_priced_by_what_was_seen() -> None:
    costs = Costs(gpu=False)
    costs.hear("test_resnet", 64, 10.0, 5)
    costs.hear("test_resnet", 64, 2.0, 0)  # the end of a fold belongs to its epochs
    assert costs.epoch("test_resnet", 64) == 2.4
    ratio = relative_cost("resnet18", 64, False) / relative_cost("test_resnet", 64, False)
    assert costs.epoch("resnet18", 64) == 2.4 * ratio


def test_probes_do_not_price_networks() -> None:
    costs = Costs(gpu=True)
    costs.hear("resnet50 ridge", 224, 0.5, 1)
    assert costs.epoch("resnet50", 224) is None
    assert costs.epoch("resnet50 knn", 224) == 0.5
    costs.hear("resnet50", 224, 60.0, 1)
    assert costs.epoch("resnet50", 224) == 60
    assert costs.epoch("resnet18 ridge", 224) == 0.5 * relative_cost("resnet18", 224, True) / (
        relative_cost("resnet50", 224, True)
    )
