"""Headers → series → checks → de-identification → pixels → Zarr, and labels."""
