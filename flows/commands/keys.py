"""The installation's secrets: which there are, and how they are changed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.shared import ready, stores_of

keys = typer.Typer(help="The vault's key and the pseudonyms' secret.", no_args_is_help=True)


@keys.command("list")
def keys_list() -> None:
    """Name the keys by their fingerprints, and how many of the vault's records each seals."""
    stores = stores_of(ready())
    from flows.console import pairs, table
    from tasks.stores.keys import records_by_key
    from tasks.stores.secrets import key_id

    here = stores.locations
    pairs("Keys", [("pseudonyms' secret", stores.pseudonymizer.key_id), ("vault key", key_id(here.vault_key))])
    held = {key_id(key) for key in (here.vault_key, *here.older_vault_keys)}
    rows = [(name, n, "here" if name in held else "MISSING") for name, n in records_by_key(stores.catalog).items()]
    table("Vault", ("key", "records", "key file"), rows)


@keys.command("rotate")
def keys_rotate() -> None:
    """Seal the vault under a new key. Stop all processes first; killed half-way, run it again."""
    settings = ready()
    from flows.console import out, pairs
    from flows.environment import given_vault_key
    from tasks.stores.keys import rotate
    from tasks.stores.secrets import NEXT, RETIRED

    # Opened by the keys from before: those from now on are looked up by what rotates.
    catalog = stores_of(settings).catalog
    done = rotate(settings.home, catalog, given_vault_key(settings))
    rows = [("vault key", f"{done.before} → {done.after}"), ("records sealed anew", done.records)]
    rows += [("records that no key here opens", done.unreadable)] if done.unreadable else []
    pairs("Rotated", rows)
    if done.by_hand:
        out.print(
            f"[yellow]The key comes from the environment: put the new one there, as {settings.home / NEXT} has it "
            "(64 hexadecimal digits: xxd -p -c 64), then run this again.[/]"
        )
    elif done.before != done.after:
        out.print(
            f"Backups of the catalog from before need {settings.home / (RETIRED + done.before)}: "
            "keep it with them, and delete it when they are gone."
        )


@keys.command("renew")
def keys_renew(
    home: Annotated[Path, typer.Argument(help="A folder that is not there yet: the new home.")],
) -> None:
    """Begin a new home with a new pseudonyms' secret; patients keep their split. Its studies are ingested anew."""
    stores = stores_of(ready())
    from flows.console import out, pairs
    from tasks.stores.renewal import renew

    done = renew(stores, home)
    rows = [("pseudonyms' secret", f"{done.before} → {done.after}"), ("patients who keep their split", done.placed)]
    rows += [("patients whose identity is not in the vault", done.unknown)] if done.unknown else []
    pairs(f"New home {home}", rows)
    out.print(
        f"Next: copy nocturne.toml, then NOCTURNE_HOME={home} nocturne ingest {stores.locations.spool}, "
        "and the folders that were ingested from."
    )
