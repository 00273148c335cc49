"""What fits in memory is remembered per backbone and image size."""

from search.policy.micro_batches import MicroBatches


def test_the_smallest_halved_batch_of_a_backbone_and_size_is_the_limit() -> None:
    heard = MicroBatches()
    for batch, micro_batch in ((32, 32), (64, 16), (64, 32), (32, 16)):
        heard.hear("resnet18", 64, batch, micro_batch)
    assert heard.limit("resnet18", 64) == 16
    assert heard.limit("resnet18", 128) is heard.limit("resnet34", 64) is None


def test_a_whole_batch_says_nothing_however_small() -> None:
    heard = MicroBatches()
    heard.hear("resnet18", 64, 4, 4)  # a fold of few rows
    assert heard.limit("resnet18", 64) is None


def test_what_was_started_at_the_limit_leaves_it_as_it_is() -> None:
    heard = MicroBatches()
    heard.hear("resnet18", 64, 64, 16)
    heard.hear("resnet18", 64, 96, 16)
    assert heard.limit("resnet18", 64) == 16
