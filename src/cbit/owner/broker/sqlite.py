"""The broker's database in one SQLite file.

Every change is one transaction with its record, on disk before the method returns (``synchronous=FULL``).
SQLite lets one writer in at a time, also among processes: two brokers on one file release nothing twice.
Records and releases can be added and neither changed nor deleted; triggers see to that, as long as nobody
edits the file itself, which the chain of hashes shows.

The file holds secrets and keys: it is made for its owner's eyes alone.
"""

from __future__ import annotations

import base64
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Self

from cbit.crypto.key import Key
from cbit.owner.broker.audit import FIRST, Event, Record
from cbit.owner.broker.store import (
    AlreadyReleased,
    File,
    Kind,
    Launch,
    Occupied,
    Policy,
    StoreUnavailable,
    Withdrawn,
    check_waiting,
)
from cbit.spec.errors import WireError

APPLICATION: Final = 0x63626974  #: "cbit", in the file's header
VERSION: Final = 1
_WAIT_S: Final = 30  # for another process that is writing

_SCHEMA: Final = """
CREATE TABLE policies (name TEXT PRIMARY KEY, kind TEXT NOT NULL, wishes BLOB NOT NULL, secret BLOB NOT NULL,
                       files TEXT NOT NULL);
CREATE TABLE launches (id TEXT PRIMARY KEY, policy TEXT NOT NULL, policy_digest TEXT NOT NULL,
                       kind TEXT NOT NULL, expires TEXT NOT NULL, keys BLOB, record TEXT NOT NULL,
                       nonce BLOB NOT NULL, released INTEGER);
CREATE INDEX launches_waiting ON launches (expires) WHERE released IS NULL;
CREATE TABLE releases (launch TEXT PRIMARY KEY, identity TEXT NOT NULL UNIQUE,
                       number INTEGER NOT NULL UNIQUE);
CREATE TABLE audit (number INTEGER PRIMARY KEY, hash TEXT NOT NULL UNIQUE, line TEXT NOT NULL);
"""
_LOCKS: Final = "".join(
    f"CREATE TRIGGER {table}_{verb} BEFORE {verb} ON {table} "
    f"BEGIN SELECT RAISE(ABORT, '{table} is only added to'); END;"
    for table in ("releases", "audit")
    for verb in ("UPDATE", "DELETE")
)


def _no_step(_: str) -> None:
    """Do nothing between steps."""


@contextmanager
def _available() -> Iterator[None]:
    """Tell a full disk, a file that may not be written and the like from a mistake of ours."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise StoreUnavailable(str(error)) from None


class SqliteStore:
    """A ``Store`` in a file; one connection, used by one thread at a time.

    Args:
        path: the database; ``create`` makes one.
        step: called between any two steps of a change, with the name of the place: tests end the process
            there.

    Raises:
        WireError: the file is no database of a broker.
        StoreUnavailable: it cannot be read or written.
        OSError: it is not there.

    Every method raises ``StoreUnavailable`` where the file cannot be read or written; nothing changed then.
    """

    def __init__(self, path: Path, *, step: Callable[[str], None] = _no_step) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no broker here; make one with `cbit owner serve init`")
        self._lock: Final = threading.Lock()
        self._step: Final = step
        self._db: Final = sqlite3.connect(
            path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False
        )
        try:
            found = [
                self._db.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("application_id", "user_version")
            ]
            if found != [APPLICATION, VERSION]:
                raise WireError(f"{path.name}: not a database of this version's broker")
            self._settings()
        except sqlite3.OperationalError as error:
            self._db.close()
            raise StoreUnavailable(f"{path.name}: {error}") from None
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise WireError(f"{path.name}: not a database of a broker ({error})") from None
        except WireError:
            self._db.close()
            raise

    @classmethod
    def create(cls, path: Path, event: Event) -> Self:
        """Make an empty database whose log begins with an event.

        Raises:
            FileExistsError: something is there already.
            StoreUnavailable: it cannot be written.
            OSError: it cannot be made.
        """
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        with _available(), closing(sqlite3.connect(path, isolation_level=None)) as db:
            first = Record(number=0, previous=FIRST, event=event)
            db.executescript(
                f"BEGIN; {_SCHEMA} {_LOCKS} PRAGMA application_id = {APPLICATION};"
                f"PRAGMA user_version = {VERSION};"
            )
            db.execute("INSERT INTO audit VALUES (?, ?, ?)", (0, first.hash, first.line))
            db.execute("COMMIT")
        return cls(path)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def _settings(self) -> None:
        for setting in ("journal_mode = WAL", "synchronous = FULL", "secure_delete = ON"):
            self._db.execute(f"PRAGMA {setting}").fetchall()

    @contextmanager
    def _change(self, what: str) -> Iterator[sqlite3.Connection]:
        with self._lock, _available():
            self._step(f"{what}: before")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._step(f"{what}: written")
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self._step(f"{what}: on disk")

    def _append(self, event: Event) -> Record:
        """Add a record; inside a change only."""
        number, previous = self._db.execute(
            "SELECT number, hash FROM audit ORDER BY number DESC LIMIT 1"
        ).fetchone()
        record = Record(number=number + 1, previous=previous, event=event)
        self._db.execute("INSERT INTO audit VALUES (?, ?, ?)", (record.number, record.hash, record.line))
        return record

    def _read(self, query: str, *values: object) -> list[Any]:
        with self._lock, _available():
            return self._db.execute(query, values).fetchall()

    def add_policy(self, policy: Policy, event: Event) -> Record:
        """Keep a policy (``Store.add_policy``)."""
        row = (policy.name, policy.kind.value, policy.wishes, policy.secret.material(), _files_text(policy))
        with self._change("add policy") as db:
            if db.execute("SELECT 1 FROM policies WHERE name = ?", (policy.name,)).fetchone():
                raise ValueError(
                    f"there is a policy {policy.name!r} already: remove it first, or take another name"
                )
            db.execute("INSERT INTO policies VALUES (?, ?, ?, ?, ?)", row)
            return self._append(event)

    def remove_policy(self, name: str, event: Event) -> Record:
        """Forget a policy (``Store.remove_policy``)."""
        with self._change("remove policy") as db:
            if not db.execute("DELETE FROM policies WHERE name = ?", (name,)).rowcount:
                raise ValueError(f"there is no policy {name!r}")
            return self._append(event)

    def policy(self, name: str) -> Policy | None:
        """Return a policy (``Store.policy``)."""
        rows = self._read("SELECT * FROM policies WHERE name = ?", name)
        return _policy(rows[0]) if rows else None

    def policies(self) -> list[Policy]:
        """Return all policies (``Store.policies``)."""
        return [_policy(row) for row in self._read("SELECT * FROM policies ORDER BY name")]

    def open_launch(self, launch: Launch, event: Event, *, now: datetime, most: int) -> Record:
        """Keep a launch (``Store.open_launch``)."""
        row = (
            *(launch.id, launch.policy, launch.policy_digest, launch.kind.value, launch.expires.isoformat()),
            *(launch.keys and launch.keys.material(), launch.record, launch.nonce),
        )
        with self._change("open launch") as db:
            db.execute("DELETE FROM launches WHERE released IS NULL AND expires <= ?", (now.isoformat(),))
            waiting = db.execute("SELECT count(*) FROM launches WHERE released IS NULL").fetchone()[0]
            if waiting >= most:
                raise Occupied(f"{waiting} launches wait for their evidence: ask again later")
            db.execute("INSERT INTO launches VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)", row)
            return self._append(event)

    def launch(self, name: str) -> Launch | None:
        """Return a launch (``Store.launch``)."""
        rows = self._read("SELECT * FROM launches WHERE id = ?", name)
        return _launch(rows[0]) if rows else None

    def release(
        self,
        launch: Launch,
        event: Event,
        *,
        policy: Policy,
        identity: str,
        clock: Callable[[], datetime],
    ) -> Record:
        """Release once (``Store.release``)."""
        with self._change("release") as db:
            found = db.execute("SELECT * FROM launches WHERE id = ?", (launch.id,)).fetchone()
            if found is None or (waiting := _launch(found)).released is not None:
                raise AlreadyReleased(f"launch {launch.id} has had its secret, or waits no longer")
            rows = db.execute("SELECT * FROM policies WHERE name = ?", (waiting.policy,)).fetchall()
            kept = _policy(rows[0]) if rows else None
            check_waiting(waiting, kept, clock())
            if kept != policy:  # the digest does not cover the secret, and an old secret may be a stolen one
                raise Withdrawn(f"the secret of policy {waiting.policy!r} was replaced meanwhile: ask again")
            self._step("release: open")
            record = self._append(event)
            self._step("release: recorded")
            try:
                db.execute("INSERT INTO releases VALUES (?, ?, ?)", (launch.id, identity, record.number))
            except sqlite3.IntegrityError:
                raise AlreadyReleased("this launch has had its secret under another name") from None
            self._step("release: marked")
            db.execute(
                "UPDATE launches SET released = ?, keys = NULL WHERE id = ?", (record.number, launch.id)
            )
            return record

    def note(self, event: Event) -> Record:
        """Record something (``Store.note``)."""
        with self._change("note"):
            return self._append(event)

    def records(self) -> Iterator[Record]:
        """Return the log (``Store.records``); a changed line is an error here, or in ``verify_records``."""
        start = -1
        while rows := self._read(
            "SELECT number, line FROM audit WHERE number > ? ORDER BY number LIMIT 1000", start
        ):
            for start, line in rows:
                yield Record.from_line(line, what=f"record {start}")

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """See the database as it is now, whatever others add meanwhile; while one thread uses it."""
        self._read("BEGIN")
        try:
            yield
        finally:
            self._read("ROLLBACK")

    def releases(self) -> dict[str, int]:
        """Return the number of the record of every release, by launch."""
        return dict(self._read("SELECT launch, number FROM releases"))


def _files_text(policy: Policy) -> str:
    return json.dumps(
        [
            [[name, base64.b64encode(data).decode()] for name, data in group]
            for group in (policy.certificates, policy.roots, policy.crls)
        ]
    )


def _policy(row: tuple[Any, ...]) -> Policy:
    name, kind, wishes, secret, files = row
    groups: list[tuple[File, ...]] = [
        tuple((file, base64.b64decode(data)) for file, data in group) for group in json.loads(files)
    ]
    return Policy(
        name=name,
        kind=Kind(kind),
        wishes=wishes,
        secret=Key(secret),
        certificates=groups[0],
        roots=groups[1],
        crls=groups[2],
    )


def _launch(row: tuple[Any, ...]) -> Launch:
    name, policy, digest, kind, expires, keys, record, nonce, released = row
    return Launch(
        id=name,
        policy=policy,
        policy_digest=digest,
        kind=Kind(kind),
        expires=datetime.fromisoformat(expires),
        keys=None if keys is None else Key(keys),
        record=record,
        nonce=nonce,
        released=released,
    )
