"""The processes of `nocturne up`, each by its name: what receives, what watches, what relays."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from flows.environment import open_stores
from flows.rounds import Rounds
from models.errors import SettingsError
from models.hospital import Completion, Destination, Peer
from models.settings import Settings
from tasks.stores.heartbeats import Heartbeat
from tasks.stores.house import Stores

if TYPE_CHECKING:
    from tasks.receive.commitment import Requester
    from tasks.receive.completion import Completer

_QUICK = 0.25


def run_listener(settings: Settings) -> None:
    """The DICOM listener, until it is told to stop."""
    from tasks.receive.completion import LISTENER
    from tasks.receive.listener import Listener
    from tasks.receive.reception import Reception

    log_plainly()
    stores = open_stores(settings)
    rounds = Rounds(settings.home, "listener")

    @contextmanager
    def listening() -> Iterator[None]:
        with Reception(stores.catalog, stores.spool, stores.pseudonymizer, source=LISTENER) as reception:
            # What was acknowledged just before a kill lies in the spool without its row.
            if found := reception.recover():
                logging.getLogger(__name__).info("%d instances of an earlier run entered in the catalog", found)
            with Listener(
                settings.listener, reception, stores.catalog, stores.pseudonymizer, requesters=requesters(settings)
            ) as listener:
                rounds.figures_from(listener.figures)
                yield

    rounds.run(listening())


def requesters(settings: Settings) -> dict[str, Requester]:
    """By AE title, where those can be called who ask for storage commitment and hang up before it is answered."""
    from tasks.receive.commitment import Requester

    known: list[Peer | Destination] = [one for one in settings.peers if one.host]
    known += [one for one in settings.destinations if one.kind == "dicom"]
    return {one.ae_title: Requester(one.host, one.port, one.tls) for one in known}


def run_watch(settings: Settings) -> None:
    """The watched folders and feeds, until it is told to stop."""
    from tasks.receive.folder import FolderWatcher
    from tasks.receive.orthanc import OrthancWatcher
    from tasks.receive.reception import Reception

    log_plainly()
    stores = open_stores(settings)
    rounds = Rounds(settings.home, "watch")
    with ExitStack() as held:

        def reception(name: str) -> Reception:
            return held.enter_context(Reception(stores.catalog, stores.spool, stores.pseudonymizer, source=name))

        for folder in settings.watched:
            watcher = FolderWatcher(folder, reception(folder.name), stores.catalog, stores.pseudonymizer)
            rounds.every(folder.every_seconds, folder.name, watcher.look)
        for feed in settings.orthanc:
            orthanc = OrthancWatcher(feed, reception(feed.name), stores.catalog, stores.pseudonymizer)
            held.callback(orthanc.close)
            rounds.every(feed.every_seconds, feed.name, orthanc.look)
        rounds.run()


def run_relay(settings: Settings, watchdog: Callable[[], int]) -> None:
    """Completes studies, tells Prefect of them, sends what waits, and looks after lost runs."""
    from tasks.deliver.run import Dispatcher
    from tasks.receive.relay import EventRelay

    log_plainly()
    stores = open_stores(settings)
    rounds = Rounds(settings.home, "relay")
    events = EventRelay(stores.catalog, settings.prefect(), settings.prefect_auth.get_secret_value())
    dispatcher = Dispatcher(stores, settings.destinations, ae_title=settings.listener.ae_title)
    rounds.every(_QUICK, "completed", completer(stores, settings).look)
    rounds.every(_QUICK, "events", events.run_due)
    rounds.every(1.0, "deliveries", dispatcher.run_due)
    rounds.every(5.0, "restarted", watchdog)
    try:
        rounds.run()
    finally:
        events.close()


def completer(stores: Stores, settings: Settings) -> Completer:
    """Which says when a study is whole, by each source's rule."""
    from tasks.receive.completion import LISTENER, Completer

    rules: dict[str, Completion] = {LISTENER: settings.listener.completion}
    rules |= {folder.name: folder.completion for folder in settings.watched}
    rules |= {feed.name: feed.completion for feed in settings.orthanc}
    return Completer(stores.catalog, rules, settings.listener.completion)


def with_heartbeat(settings: Settings, name: str, work: Callable[[], None]) -> None:
    """Do `work`, which blocks and minds its own signals, and give a sign of life meanwhile."""
    heartbeat, over = Heartbeat(settings.home, name), threading.Event()

    def beat() -> None:
        while not over.is_set():
            heartbeat.beat({})
            over.wait(2.0)

    beating = threading.Thread(target=beat, name=f"{name} heartbeat", daemon=True)
    beating.start()
    try:
        work()
        heartbeat.end()
    finally:
        over.set()
        beating.join(timeout=5)


def log_plainly() -> None:
    """Log lines to standard error. pynetdicom's are left out: they quote what was sent."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name, level in (("pynetdicom", logging.CRITICAL), ("httpx", logging.WARNING), ("pydicom", logging.ERROR)):
        logging.getLogger(name).setLevel(level)


def resend(settings: Settings, stores: Stores, destination: str) -> str:
    """Make due what that destination refused, or any where it is empty; returns what came of it in words.

    Raises SettingsError for an unknown name.
    """
    from tasks.deliver.run import resend as due_again

    known = [one.name for one in settings.destinations]
    if destination and destination not in known:
        raise _unknown("destination", destination, known)
    due = due_again(stores.catalog, destination or None)
    return (
        f"due again: {due}; the relay sends them, `nocturne status` tells how they fare" if due else "none was refused"
    )


def pull(settings: Settings, stores: Stores, peer: str, *, since: str, modality: str, studies: tuple[str, ...]) -> str:
    """Ask the PACS of that name; returns what came of it in words. Raises SettingsError for an unknown name."""
    from tasks.receive.pull import pull as ask
    from tasks.receive.reception import Reception

    known = {one.name: one for one in settings.peers}
    if peer not in known:
        raise _unknown("peer", peer, known)
    log_plainly()
    with Reception(stores.catalog, stores.spool, stores.pseudonymizer, source=peer) as reception:
        done = ask(
            known[peer],
            reception,
            stores.catalog,
            stores.pseudonymizer,
            since=None if studies else duration(since),
            modality=modality or None,
            study_uids=studies,
            ae_title=settings.listener.ae_title,
        )
    return str(done)


def _unknown(what: str, name: str, known: Iterable[str]) -> SettingsError:
    return SettingsError(
        f"no {what} of this name; known: {', '.join(known) or 'none'}",
        where=name,
        hint=f"add it under [[{what}s]] in nocturne.toml",
    )


def duration(text: str) -> timedelta:
    """A span of time such as 90m, 12h, 1d or 2w. Raises SettingsError."""
    units = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
    if (found := re.fullmatch(r"(\d{1,6})([mhdw])", text.strip())) is None:
        raise SettingsError("not a span of time", where=text, hint="write it as 90m, 12h, 1d or 2w")
    return timedelta(**{units[found[2]]: int(found[1])})
