"""The verbs: a room per stage. `door.py` holds the Prefect tasks and nothing else."""

import os

# Before any room imports PyTorch: OpenMP's threads then sleep while they wait for each other. Spinning, as they do by
# default, makes a training step ten times slower as soon as anything else runs on the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
