from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from models.errors import IntegrityError, NotFoundError, SettingsError
from tasks.stores.catalog import Catalog
from tasks.stores.tables import VaultRow
from tasks.stores.vault import Vault

KEY = bytes(range(32))


@pytest.fixture
def vault(catalog: Catalog) -> Vault:
    return Vault(catalog, KEY)


def test_what_is_put_is_got(vault: Vault) -> None:
    vault.put("study", "2.25.1", {"uid": "1.2.3", "name": "Müller^Jürgen", "n": [1, None, 2.5]})
    assert vault.get("study", "2.25.1") == {"uid": "1.2.3", "name": "Müller^Jürgen", "n": [1, None, 2.5]}


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    key=st.text(min_size=1, max_size=40, alphabet=st.characters(blacklist_categories=("Cs",), min_codepoint=1)),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    ),
)
def test_every_json_value_survives(vault: Vault, key: str, value: object) -> None:
    vault.put("any", key, value)
    assert vault.get("any", key) == value


def test_the_last_put_counts(vault: Vault, catalog: Catalog) -> None:
    vault.put("study", "a", 1)
    vault.put("study", "a", 2)
    vault.put("patient", "a", 3)
    assert (vault.get("study", "a"), vault.get("patient", "a")) == (2, 3)
    assert catalog.count(VaultRow) == 2


def test_many_go_in_one_transaction_and_come_out_in_one_call(vault: Vault) -> None:
    values = {f"2.25.{i}": f"1.2.{i}" for i in range(1200)}
    vault.put_many("instance", values)
    assert vault.get_many("instance", [*values, "2.25.unknown"]) == values
    assert vault.get_many("instance", []) == {}


def test_a_long_record_is_small_and_the_same(vault: Vault, catalog: Catalog) -> None:
    scan = [{"uid": f"1.2.840.{n}", "position": [0.0, 0.0, 2.5 * n], "rows": 512} for n in range(500)]
    vault.put("scan", "a", scan)
    (row,) = catalog.find(VaultRow)
    assert len(row.sealed) < len(json.dumps(scan)) / 4
    assert vault.get("scan", "a") == scan


def test_a_long_record_of_before_is_read(vault: Vault, catalog: Catalog) -> None:
    told = json.dumps(["as it was"] * 500).encode()
    nonce = bytes(12)
    sealed = AESGCM(KEY).encrypt(nonce, told, b"scan\0a")
    catalog.add(VaultRow(kind="scan", key="a", key_id=vault.key_id, nonce=nonce, sealed=sealed))
    assert vault.get("scan", "a") == ["as it was"] * 500


def test_what_is_removed_is_gone(vault: Vault) -> None:
    vault.put("study", "a", 1)
    vault.remove("study", "a")
    vault.remove("study", "a")
    with pytest.raises(NotFoundError):
        vault.get("study", "a")


def test_nothing_readable_is_stored(vault: Vault, catalog: Catalog, tmp_path: Path) -> None:
    marker = "GEHEIM-4711"
    vault.put_many("patient", {f"P-{i}": {"name": marker} for i in range(20)})
    for row in catalog.find(VaultRow):
        assert marker.encode() not in row.sealed
        assert b"name" not in row.sealed
    catalog.close()
    for file in tmp_path.glob("catalog.db*"):
        assert marker.encode() not in file.read_bytes()


def test_equal_values_are_sealed_differently(vault: Vault, catalog: Catalog) -> None:
    vault.put_many("patient", {"P-1": "same", "P-2": "same"})
    first, second = catalog.find(VaultRow)
    assert first.nonce != second.nonce
    assert first.sealed != second.sealed


@pytest.mark.fault("privacy/vault")
def test_another_key_opens_nothing_and_says_which_key_it_needs(vault: Vault, catalog: Catalog) -> None:
    vault.put("study", "a", 1)
    other = Vault(catalog, bytes(32))
    with pytest.raises(SettingsError, match=vault.key_id):
        other.get("study", "a")
    with pytest.raises(SettingsError):
        other.get_many("study", ["a"])


@pytest.mark.fault("privacy/vault")
def test_another_key_that_claims_to_be_the_right_one_is_found_out(vault: Vault, catalog: Catalog) -> None:
    vault.put("study", "a", 1)
    forger = Vault(catalog, bytes(32))
    forger.key_id = vault.key_id
    with pytest.raises(IntegrityError):
        forger.get("study", "a")


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_key_of_another_length_is_refused(catalog: Catalog, length: int) -> None:
    with pytest.raises(SettingsError, match="32 bytes"):
        Vault(catalog, bytes(length))


@pytest.mark.parametrize("column", ["sealed", "nonce"])
def test_one_changed_bit_is_found(vault: Vault, catalog: Catalog, column: str) -> None:
    vault.put("study", "a", {"uid": "1.2.3"})
    (row,) = catalog.find(VaultRow)
    changed = bytearray(getattr(row, column))
    changed[0] ^= 1
    catalog.change(VaultRow, VaultRow.key == "a", **{column: bytes(changed)})
    with pytest.raises(IntegrityError) as caught:
        vault.get("study", "a")
    assert caught.value.where == "a"


def test_a_cut_record_is_found(vault: Vault, catalog: Catalog) -> None:
    vault.put("study", "a", {"uid": "1.2.3"})
    for cut in (b"", b"short"):
        catalog.change(VaultRow, VaultRow.key == "a", sealed=cut)
        with pytest.raises(IntegrityError):
            vault.get("study", "a")
    catalog.change(VaultRow, VaultRow.key == "a", nonce=b"")
    with pytest.raises(IntegrityError):
        vault.get("study", "a")


def test_records_cannot_be_swapped(vault: Vault, catalog: Catalog) -> None:
    vault.put_many("patient", {"P-1": "Müller", "P-2": "Maier"})
    with catalog.transaction() as session:
        session.execute(text("UPDATE vault SET key = 'P-x' WHERE key = 'P-1'"))
        session.execute(text("UPDATE vault SET key = 'P-1' WHERE key = 'P-2'"))
        session.execute(text("UPDATE vault SET key = 'P-2' WHERE key = 'P-x'"))
    for key in ("P-1", "P-2"):
        with pytest.raises(IntegrityError):
            vault.get("patient", key)


def test_a_record_cannot_be_passed_off_as_another_kind(vault: Vault, catalog: Catalog) -> None:
    vault.put("series", "a", "1.2.3")
    catalog.change(VaultRow, VaultRow.key == "a", kind="study")
    with pytest.raises(IntegrityError):
        vault.get("study", "a")
