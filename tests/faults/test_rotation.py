"""Keys that are lost, rotated, and rotated by somebody who is killed meanwhile."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from models.dataset import Dataset
from models.errors import SettingsError
from models.recipe import Recipe
from tasks.cohort.write import write_cohort
from tasks.ingest.build import build_dataset
from tasks.ingest.labels.run import LabelIngestor
from tasks.ingest.run import Ingestor, IngestRules
from tasks.stores.catalog import Catalog
from tasks.stores.heartbeats import Heartbeat
from tasks.stores.house import Locations, Stores
from tasks.stores.keys import records_by_key, rotate
from tasks.stores.renewal import renew
from tasks.stores.secrets import KEY, NEXT, RETIRED, key_id, load_or_create_secret, vault_keys
from tasks.stores.tables import SplitRow, VaultRow, VolumeRow
from tasks.stores.vault import Vault
from tests.faults.rotating import GATES
from tests.matrix import Figure

NAMES = {f"P-{n}": {"name": f"Gruber^Maria {n}", "born": "19610412"} for n in range(1200)}
RECIPE = Recipe.parse(
    """
name = "small"
kind = "segmentation"
images.modality = "CT"
labels = { source = "SEG", classes = ["Liver", "Lesion"] }
"""
)


def opened(home: Path, given: bytes | None = None) -> tuple[Catalog, Vault]:
    """Catalog and vault, as every process opens them."""
    keys, catalog = vault_keys(home, given), Catalog(f"sqlite:///{home / 'catalog.db'}")
    return catalog, Vault(catalog, keys.sealing, *keys.opening)


def filled(home: Path, given: bytes | None = None) -> bytes:
    """A vault with records; returns its key."""
    catalog, vault = opened(home, given)
    vault.put_many("patient", NAMES)
    catalog.close()
    return vault_keys(home, given).sealing


def readable(home: Path, given: bytes | None = None) -> None:
    """Everything that was sealed can be read, and what is sealed now too."""
    catalog, vault = opened(home, given)
    assert vault.get_many("patient", NAMES) == NAMES
    vault.put("note", "now", 1)
    assert vault.get("note", "now") == 1
    catalog.close()


def refuses(home: Path, key: bytes) -> None:
    """This key alone opens nothing."""
    catalog = Catalog(f"sqlite:///{home / 'catalog.db'}")
    with pytest.raises(SettingsError, match="sealed with vault key"):
        Vault(catalog, key).get_many("patient", NAMES)
    catalog.close()


@pytest.mark.fault("privacy/rotation")
def test_a_rotation_that_is_killed_leaves_every_record_readable_and_goes_on(tmp_path: Path, figure: Figure) -> None:
    before = filled(tmp_path / "whole")
    for gate in GATES:
        home = tmp_path / gate.replace(" ", "-")
        shutil.copytree(tmp_path / "whole", home)
        command = [sys.executable, "-m", "tests.faults.rotating", str(home), gate]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "here\n"
            process.kill()
        assert (home / KEY).read_bytes() == before
        readable(home)

        catalog, _ = opened(home)
        done = rotate(home, catalog)
        after = (home / KEY).read_bytes()
        assert (done.before, done.after, done.unreadable) == (key_id(before), key_id(after), 0)
        assert records_by_key(catalog) == {key_id(after): len(NAMES) + 1}
        catalog.close()
        readable(home)
        refuses(home, before)
        assert after != before
        names = sorted(path.name for path in home.glob(f"*{KEY}*") if path.name != f".{KEY}.lock")
        assert names == [KEY, f"{RETIRED}{key_id(before)}"]
        assert {path.stat().st_mode & 0o777 for path in home.glob(f"{KEY}*")} == {0o600}
    figure(f"rotation killed at {len(GATES)} moments: each of {len(NAMES)} records read, then and afterwards")


@pytest.mark.fault("privacy/vault")
def test_without_the_key_nothing_is_read_and_nothing_readable_is_stored(tmp_path: Path, figure: Figure) -> None:
    filled(tmp_path)
    (tmp_path / KEY).unlink()
    catalog, vault = opened(tmp_path)
    with pytest.raises(SettingsError, match="restore the key file"):
        vault.get("patient", "P-7")
    rows = catalog.find(VaultRow)
    catalog.close()
    assert not any(b"Gruber" in row.sealed or b"1961" in row.sealed for row in rows)
    assert not any(b"Gruber" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    figure(f"{len(rows)} records: none opens, and the error names the key that is wanted")


@pytest.mark.fault("privacy/rotation")
def test_a_key_from_the_environment_is_changed_by_its_owner(tmp_path: Path) -> None:
    given = bytes(range(32))
    filled(tmp_path, given)
    catalog, _ = opened(tmp_path, given)
    assert rotate(tmp_path, catalog, given).by_hand
    new = (tmp_path / NEXT).read_bytes()
    readable(tmp_path, given)
    readable(tmp_path, new)
    done = rotate(tmp_path, catalog, new)
    assert (done.by_hand, done.after) == (False, key_id(new))
    assert not (tmp_path / NEXT).exists()
    assert not (tmp_path / KEY).exists()
    assert set(records_by_key(catalog)) == {key_id(new)}
    catalog.close()
    readable(tmp_path, new)
    refuses(tmp_path, given)


@pytest.mark.fault("privacy/rotation")
def test_no_rotation_beside_processes_that_know_the_old_key(tmp_path: Path) -> None:
    before = filled(tmp_path)
    sign = Heartbeat(tmp_path, "listener")
    sign.beat({})
    catalog, _ = opened(tmp_path)
    with pytest.raises(SettingsError, match="listener"):
        rotate(tmp_path, catalog)
    assert (tmp_path / KEY).read_bytes() == before
    sign.end()
    rotate(tmp_path, catalog)
    catalog.close()
    readable(tmp_path)


def house(home: Path) -> Stores:
    """An installation with the secrets of its home."""
    keys = vault_keys(home)
    return Stores(
        Locations(
            home=home,
            database=f"sqlite:///{home / 'catalog.db'}",
            **{name: str(home / name) for name in ("volumes", "prepared", "datasets", "evaluations", "packages")},
            spool=home / "spool",
            tracking=f"sqlite:///{home / 'mlflow.db'}",
            secret=load_or_create_secret(home / "secret"),
            vault_key=keys.sealing,
            older_vault_keys=keys.opening,
            workers=1,
        )
    )


def learnable(stores: Stores, cohort: Path) -> Dataset:
    """The dataset of everything below `cohort`, taken in."""
    shared = stores.catalog, stores.vault, stores.volumes, stores.pseudonymizer
    ingestor, labels = Ingestor(*shared, IngestRules(), workers=1), LabelIngestor(*shared)
    found = ingestor.scan([str(cohort)])
    for ref in found.series:
        ingestor.ingest(ref)
    for ref in found.labels:
        labels.ingest(ref)
    return build_dataset(RECIPE, stores.catalog, stores.datasets, stores.pseudonymizer, stores.volumes).dataset


@pytest.mark.fault("privacy/rotation")
def test_another_secret_is_refused_on_this_catalog_and_a_new_home_has_a_new_dataset(
    tmp_path: Path, figure: Figure
) -> None:
    cohort = write_cohort(tmp_path / "cohort", patients=10, broken=0).incoming
    old = house(tmp_path / "old")
    before = learnable(old, cohort)

    secret = (tmp_path / "old" / "secret").read_bytes()
    (tmp_path / "old" / "secret").write_bytes(bytes(32))
    with pytest.raises(SettingsError, match="were made with secret") as caught:
        _ = house(tmp_path / "old").catalog
    assert old.pseudonymizer.key_id in str(caught.value)
    assert secret.hex() not in str(caught.value)
    (tmp_path / "old" / "secret").write_bytes(secret)

    done = renew(old, tmp_path / "new")
    assert (done.placed, done.unknown) == (old.catalog.count(SplitRow), 0)
    assert renew(old, tmp_path / "new") == done  # as after a kill
    new = house(tmp_path / "new")
    after = learnable(new, cohort)
    assert after.key != before.key
    assert after.counts() == before.counts()
    for kept in ("patient", "study", "series", "volume", "label"):
        assert not {getattr(row, kept) for row in before.rows} & {getattr(row, kept) for row in after.rows}
    for row in old.catalog.find(VolumeRow):
        assert not new.volumes.exists(row.volume)
    sides = {old.pseudonymizer.patient(name): split for name, split in _sides(new).items()}
    assert sides == {row.patient: row.split for row in old.catalog.find(SplitRow)}
    old.catalog.close()
    new.catalog.close()
    figure(f"{len(after.rows)} cases: another secret, another dataset; {done.placed} patients on the same side")


def _sides(stores: Stores) -> dict[str, str]:
    """Each patient's side, by the identity that ingest sealed."""
    rows = {row.patient: row.split for row in stores.catalog.find(SplitRow)}
    records = stores.vault.get_many("series", [row.series for row in stores.catalog.find(VolumeRow)])
    names = {record["identity"]["PatientID"] for record in records.values()}
    return {name: rows[stores.pseudonymizer.patient(name)] for name in names}
