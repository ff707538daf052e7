"""A reproducible companion to Cont-Steal (Sha et al., CVPR 2023) and to defences against it.

Importing this package loads none of its modules: `from contsteal import losses, steal, victim`.
"""

__version__ = "0.1.0"
