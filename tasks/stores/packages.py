"""What lies in a package's folder: `weights.safetensors` and `package.json`, tied together by the weights' digest.

Reading the JSON alone (`read_description`) imports no PyTorch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import IntegrityError, PackageError, RecipeError
from models.package import PACKAGE_FILE, WEIGHTS_FILE, ModelPackage
from tasks.stores.places import write_synced

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = 1 << 20
_LONGEST_DESCRIPTION = 64 << 20
_BACK = "restore the package from a backup, or roll back to another version"


def read_description(folder: Path) -> ModelPackage:
    """`package.json`. Raises PackageError."""
    path = folder / PACKAGE_FILE
    if not path.is_file():
        raise PackageError(f"{PACKAGE_FILE} is missing", where=folder.name, hint="this folder is not a model package")
    if path.stat().st_size > _LONGEST_DESCRIPTION:
        raise PackageError(f"{PACKAGE_FILE} is too long to be one", where=folder.name, hint=_BACK)
    return ModelPackage.parse(path.read_bytes())


def read_package(folder: Path) -> tuple[ModelPackage, dict[str, Tensor]]:
    """Description and weights (on the CPU), proven to belong together and to the network that the plan names.

    Raises IntegrityError where the weights' bytes are not those that were trained, PackageError where something is
    missing, malformed or does not fit the network.
    """
    # Here, so that whoever needs only the description does not pay for PyTorch.
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    package = read_description(folder)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise PackageError(f"{WEIGHTS_FILE} is missing", where=package.key, hint="roll back to another version")
    if digest(path) != package.weights_sha256:
        raise IntegrityError(
            f"{WEIGHTS_FILE} is not what was trained: its SHA-256 differs from {PACKAGE_FILE}'s",
            where=package.key,
            hint=_BACK,
        )
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise PackageError(f"{WEIGHTS_FILE} is not in safetensors format: {error}", where=package.key) from None
    check_weights(package, weights)
    return package, weights


def check_weights(package: ModelPackage, weights: Mapping[str, Tensor]) -> None:
    """Raises PackageError where names or shapes differ from those of the plan's network, or of all members'."""
    import torch

    from models.networks import build

    try:
        with torch.device("meta"):
            expected = {
                prefix + name: tuple(tensor.shape)
                for prefix, plan in package.plans.items()
                for name, tensor in build(plan.network).state_dict().items()
            }
    except RecipeError as error:
        raise PackageError(error.what, where=package.key, hint=error.hint) from None
    except (ArithmeticError, AssertionError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        # Builders take a plan that was made for them; this one was not.
        raise PackageError(f"its network cannot be built ({type(error).__name__})", where=package.key) from None
    found = {name: tuple(t.shape) for name, t in weights.items()}
    if found == expected:
        return
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    first = wrong[0]
    names = "/".join(dict.fromkeys(plan.network.name for plan in package.plans.values()))
    raise PackageError(
        f"{len(wrong)} tensor(s) do not fit the network {names}; {first} is "
        f"{found.get(first, 'missing')}, expected {expected.get(first, 'none')}",
        where=package.key,
        hint="the package comes from another version of this network: train it again",
    )


def write_weights(folder: Path, weights: Mapping[str, Tensor]) -> str:
    """Write the weights whole or not at all; returns the SHA-256 that the package's description must carry."""
    from safetensors.torch import save

    # Byte for byte the same for the same weights: safetensors sorts by name, and there is no date in it.
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})
    write_synced(folder / WEIGHTS_FILE, content)
    return hashlib.sha256(content).hexdigest()


def write_package(folder: Path, package: ModelPackage) -> None:
    """Write `package.json` beside the weights. Raises PackageError where they are not the package's."""
    path = folder / WEIGHTS_FILE
    if not path.is_file() or digest(path) != package.weights_sha256:
        raise PackageError(f"{WEIGHTS_FILE} beside {PACKAGE_FILE} is not the package's", where=package.key)
    write_synced(folder / PACKAGE_FILE, (package.model_dump_json(indent=1) + "\n").encode())


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            total.update(block)
    return total.hexdigest()
