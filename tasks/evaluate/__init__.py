"""How good a package is, on the frozen test split."""
