"""Lineage: what a result came from, and what came of it."""
