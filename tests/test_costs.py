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


def test_machines_differ_by_a_factor_that_holds_for_all_models() -> None:
    costs = Costs(gpu=True)
    costs.hear("resnet50", 224, 20.0, 2, "new")
    costs.hear("resnet50", 224, 40.0, 1, "old")  # four times as slow
    costs.hear("resnet18", 224, 8.0, 2, "new")
    assert costs.epoch("resnet18", 224, "new") == 4
    assert costs.epoch("resnet18", 224, "old") == 16
    assert costs.epoch("resnet50", 224, "old") == 40
    # Anywhere: as the time was spent, 28 s on the new one and 40 s on the old one.
    anywhere = costs.epoch("resnet18", 224)
    assert anywhere is not None and abs(anywhere - (28 * 4 + 40 * 16) / 68) < 1e-9
    assert costs.epoch("resnet18", 224, "unknown") == anywhere


def test_machines_without_a_model_in_common_are_compared_by_prices() -> None:
    costs = Costs(gpu=True)
    costs.hear("resnet50", 224, 10.0, 10, "new")
    dear = relative_cost("resnet18", 224, True) / relative_cost("resnet50", 224, True)
    costs.hear("resnet18", 224, 3 * dear, 1, "old")
    slow = costs.epoch("resnet50", 224, "old")
    assert slow is not None and abs(slow - 3) < 1e-9
