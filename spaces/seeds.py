"""Seeds that derive from one another, so that every random choice hangs on the run's seed."""

import hashlib


def derive(*parts: int | str) -> int:
    """A seed in [0, 2**63) that depends on all `parts` and on nothing else."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
