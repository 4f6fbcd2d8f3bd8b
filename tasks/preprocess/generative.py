"""What a synthesis is planned differently in: values with ends, images as they are, and a rate that two networks
which learn from each other bear.
"""

from __future__ import annotations

from models.plan import Normalisation, Plan
from models.recipe import Augment, Recipe

NETWORK = "gan"
RATE = 2e-4


def adapted(plan: Plan, recipe: Recipe) -> Plan:
    """The plan of a classification with the same images, for a generator of them."""
    ways = plan.prepare.normalisation
    if recipe.preprocess.normalise == "auto":
        ways = tuple(way if way.scheme == "ct" else Normalisation(scheme="minmax") for way in ways)
    wish = recipe.train
    train = plan.train.model_copy(
        update={
            "augment": Augment.none(),
            "learning_rate": RATE if wish.learning_rate == "auto" else wish.learning_rate,
            "weight_decay": 0.0,
            "schedule": "constant" if wish.schedule == "auto" else wish.schedule,
            "precision": "fp32",
            "compile": False,
        }
    )
    asked = recipe.synthesis
    told = f"{asked.loss} loss, the discriminator {asked.discriminator_steps} × a step, shown images as they are"
    return plan.model_copy(
        update={
            "prepare": plan.prepare.model_copy(update={"normalisation": ways}),
            "network": plan.network.model_copy(update={"latent": asked.latent}),
            "train": train,
            "notes": (*plan.notes, told),
        }
    )
