"""The demo's own patients: an abdomen-like phantom, written as the genuine DICOM that two scanners would send."""
