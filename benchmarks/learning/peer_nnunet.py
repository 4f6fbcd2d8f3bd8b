"""nnU-Net v2 for a given amount of CPU time. Runs in an environment of its own, which has nnunetv2 and not Nocturne.

    python peer_nnunet.py FOLDER CPU_SECONDS THREADS

FOLDER holds `raw/Dataset001_Bench` as nnU-Net wants it, with `splits.json` ({"train": […], "val": […]}). Its own plan,
network, augmentation, loss, optimiser and prediction are used, fp32 as it does on a CPU; the one change is that the
polynomial decay follows the share of CPU time that is spent instead of 1,000 epochs, and that training ends with it.
Writes `predicted/*.nii.gz` and prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path

folder, budget, threads = Path(sys.argv[1]).absolute(), float(sys.argv[2]), int(sys.argv[3])
for part in ("raw", "preprocessed", "results", "predicted"):
    (folder / part).mkdir(exist_ok=True)
    os.environ[f"nnUNet_{part}"] = str(folder / part)
os.environ |= {"nnUNet_n_proc_DA": str(threads), "nnUNet_compile": "f", "OMP_NUM_THREADS": str(threads)}

import torch  # noqa: E402
from nnunetv2.experiment_planning.plan_and_preprocess_api import (  # noqa: E402
    extract_fingerprints,
    plan_experiments,
    preprocess,
)
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # noqa: E402
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # noqa: E402

torch.set_num_threads(threads)
DATASET = "Dataset001_Bench"


class Budgeted(nnUNetTrainer):
    """The trainer as it is, on a clock of CPU time."""

    steps = 0

    def learn(self, seconds: float) -> None:
        """Steps until the seconds are spent."""
        self.on_train_start()
        begun = time.process_time()
        self.network.train()
        while (spent := (time.process_time() - begun) / seconds) < 1:
            for group in self.optimizer.param_groups:
                group["lr"] = self.initial_lr * (1 - spent) ** 0.9
            self.train_step(next(self.dataloader_train))
            self.steps += 1
        self.spent = time.process_time() - begun
        self.network.eval()


def configuration() -> str:
    """3d_fullres; nnU-Net drops it where all images are flat."""
    plans = json.loads((folder / "preprocessed" / DATASET / "nnUNetPlans.json").read_text())
    return "3d_fullres" if "3d_fullres" in plans["configurations"] else "2d"


def main() -> None:
    extract_fingerprints([1], num_processes=threads)
    plan_experiments([1])
    chosen = configuration()
    preprocess([1], configurations=(chosen,), num_processes=(threads,))
    place = folder / "preprocessed" / DATASET
    (place / "splits_final.json").write_text(json.dumps([json.loads((folder / "splits.json").read_text())]))
    plans = json.loads((place / "nnUNetPlans.json").read_text()) | {"continue_training": False}
    dataset = json.loads((place / "dataset.json").read_text())
    os.environ.update(nnUNet_n_proc_DA="0")  # batches in this very process, so that its CPU time counts
    trainer = Budgeted(plans, chosen, 0, dataset, torch.device("cpu"))
    trainer.initialize()
    trainer.learn(budget)
    trainer.set_deep_supervision_enabled(False)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        None,
        dataset,
        "Budgeted",
        trainer.inference_allowed_mirroring_axes,
    )
    predictor.list_of_parameters = [trainer.network.state_dict()]
    predictor.predict_from_files_sequential(
        str(folder / "raw" / DATASET / "imagesTs"), str(folder / "predicted"), overwrite=True
    )
    told = trainer.configuration_manager
    about = f"{chosen}, patch {' × '.join(map(str, told.patch_size))}, batch {told.batch_size}"
    print(json.dumps({"steps": trainer.steps, "cpu_seconds": trainer.spent, "memory_mb": memory, "about": about}))


if __name__ == "__main__":
    main()
