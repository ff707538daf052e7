"""What an owner can prove afterwards: dataset inference, watermarks, and how thieves hide."""

from contsteal.ownership import inference, sslguard, watermark
from contsteal.ownership.inference import *  # noqa: F403 the module says what it offers
from contsteal.ownership.obfuscation import OBFUSCATIONS

__all__ = ["OBFUSCATIONS", "sslguard", "watermark"]
__all__ += inference.__all__
