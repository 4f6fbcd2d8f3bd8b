"""How results get out: DICOM SEG and SR under the original identity, to a PACS exactly once."""
