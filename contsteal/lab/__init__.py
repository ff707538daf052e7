"""A profile's experiments: settings, artifacts kept by content, sweeps as tidy tables."""
