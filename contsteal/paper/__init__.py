"""What `make` calls: notebooks, figures, claims and the summary."""
