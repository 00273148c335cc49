"""What is known to fit in memory, per backbone and image size. Pure."""


class MicroBatches:
    """Remembers to what trials of a backbone and image size had to halve their batch, so that the
    next one starts there and does not run out of memory first."""

    def __init__(self) -> None:
        self._limits: dict[tuple[str, int], int] = {}

    def hear(self, backbone: str, image_size: int, batch: int, micro_batch: int) -> None:
        """An epoch was trained in parts of `micro_batch` rows; whole, a step has `batch` rows
        (the recipe's, or all rows of the fold when they are fewer)."""
        if micro_batch < batch:
            key = backbone, image_size
            self._limits[key] = min(micro_batch, self._limits.get(key, micro_batch))

    def limit(self, backbone: str, image_size: int) -> int | None:
        """The largest micro-batch to start with; None: nothing had to be halved so far."""
        return self._limits.get((backbone, image_size))
