"""Where things lie: places (folders and object stores), catalog and vault (SQL), volumes (Zarr), registry (MLflow)."""
