"""A reproducible companion to Cont-Steal: steal image encoders, count the queries, defend them."""

__version__ = "0.1.0"
