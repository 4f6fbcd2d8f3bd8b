"""Made images for a recipe that asks for them, and what the recipe would be without."""

from __future__ import annotations

from flows.night import for_this_night, one_training_at_a_time
from models.errors import NotFoundError
from models.recipe import Recipe
from models.refs import DatasetRef, EvaluationRef, PackageRef
from tasks.evaluate import door as evaluating
from tasks.predict import door as predicting
from tasks.preprocess import door as preprocessing
from tasks.register import door as registering
from tasks.stores.house import Stores
from tasks.train import door as training


def with_made_images(stores: Stores, recipe: Recipe, dataset: DatasetRef) -> DatasetRef:
    """The dataset with the images that the recipe asks for, or as it is. Raises NotFoundError without their model."""
    if recipe.synthetic is None:
        return dataset
    source = for_this_night(registering.champion)(stores, recipe.synthetic.source)
    if source is None:
        raise NotFoundError(
            f"there is no model {recipe.synthetic.source!r} to make images",
            where="synthetic.source",
            hint="retrain that recipe first",
        )
    return predicting.synthesise(stores, recipe, dataset, source)


def judged_without(
    stores: Stores, recipe: Recipe, dataset: DatasetRef, followed: PackageRef | None
) -> EvaluationRef | None:
    """The same recipe, learnt from the real images alone, on the same test patients; None where none were made.

    It starts from `followed` too, so that made images are all that differs.
    It takes as long as the training itself, once per dataset.
    """
    if recipe.synthetic is None:
        return None
    plan = preprocessing.plan(stores, recipe, dataset, followed)
    prepared = preprocessing.prepare(stores, recipe, plan)
    with one_training_at_a_time():
        package = training.train(stores, recipe, plan, prepared, followed, ())
    return evaluating.evaluate(stores, package, dataset)
