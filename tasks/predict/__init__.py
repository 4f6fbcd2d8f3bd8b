"""The champion on one study."""
