"""What is fuzzed, by name."""

from __future__ import annotations

from typing import Final

TARGETS: Final = ("headers", "geometry", "rtstruct", "recipes", "packages", "upper_layer", "dicomweb")
"""Each is a module here: `target` takes bytes and raises NocturneError or nothing, `seeds` gives bytes that are right,
and `shaped` draws bytes of the right shape with things wrong in them."""
