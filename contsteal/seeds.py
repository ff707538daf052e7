"""One rule for randomness: every draw comes from a generator named by its purpose.

No function of the package reads the global generator. So a result depends on its seeds alone, not on
what ran before it, and a run that resumes at epoch e draws what an uninterrupted one draws.
"""

import hashlib

import torch


def derive(*key: str | int) -> int:
    """Return the seed that belongs to `key`, such as `derive("views", seed, epoch)`.

    Args:
        *key: words and numbers that name what is drawn.

    Returns:
        From 0 to 2^63 - 1.

    Example:
        >>> derive("views", 0, 1) == derive("views", 0, 1), derive("views", 0) == derive("queries", 0)
        (True, False)
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*key: str | int) -> torch.Generator:
    """Return a CPU generator seeded by `key`; equal keys give equal draws on every device.

    Random parameters are drawn on the CPU (a dozen numbers an image) and moved to the images'
    device: a view is the same view on a laptop and on a GPU.

    Args:
        *key: as of `derive`.

    Example:
        >>> torch.equal(torch.rand(3, generator=generator("a")), torch.rand(3, generator=generator("a")))
        True
    """
    return torch.Generator().manual_seed(derive(*key))
