"""From prepared arrays to a model package."""
