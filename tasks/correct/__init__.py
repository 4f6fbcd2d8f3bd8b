"""Corrections: predictions beside the labels that came after them, and how far they were from those."""
