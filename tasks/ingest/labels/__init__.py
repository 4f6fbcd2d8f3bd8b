"""The truth: DICOM SEG, RTSTRUCT and NIfTI label maps on their image's grid, and tables of classes."""
