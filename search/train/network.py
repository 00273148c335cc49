"""What training a network and probing a frozen one begin with: image statistics and weights."""

from torch import Tensor, nn

from search.data.batches import channel_statistics
from search.model.backbone import Network, build_model
from search.model.facts import model_facts, normalisation
from search.model.initial import start_from
from search.train.job import FoldJob


def seen_channels(job: FoldJob) -> int:
    """Channels of the stored images that the network sees."""
    return min(job.recipe.channels, job.images_NHWC.shape[-1])


def image_scale(job: FoldJob) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel that images are normalised with: of the training
    rows where the recipe says so, else what the backbone expects."""
    channels = seen_channels(job)
    if job.recipe.normalise == "train":
        return channel_statistics(job.images_NHWC, job.train_rows, job.views, channels)
    return normalisation(job.recipe, model_facts(job.recipe.backbone), channels)


def start_network(job: FoldJob, outputs: int) -> Network:
    """The job's network at its start, on the CPU; what is random is drawn from torch's global
    generator."""
    network = build_model(
        job.recipe,
        outputs,
        job.weights_dir,
        pretrained=job.initial is None,
        channels=seen_channels(job),
        views=job.views,
    )
    if job.initial is not None:
        start_from(network, job.initial)
    return network


def weights_on_cpu(network: nn.Module) -> dict[str, Tensor]:
    """Copies of a network's weights, to be kept."""
    state = network.state_dict()
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in state.items()}
