"""What ``cbit owner serve`` does: the broker's folder, its policies, its log; and the guest's end."""

from __future__ import annotations

import errno
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cbit.cli.addresses import family, shown
from cbit.cli.envelope import Outcome
from cbit.cli.target import insist_apart
from cbit.crypto.entropy import SystemEntropy
from cbit.crypto.key import Key
from cbit.owner import files, idblock, secret
from cbit.owner.broker import packet, tls
from cbit.owner.broker.audit import Event, Record, verify_records
from cbit.owner.broker.rules import Broker
from cbit.owner.broker.server import Server
from cbit.owner.broker.sqlite import SqliteStore
from cbit.owner.broker.store import File, Kind, Policy
from cbit.owner.files import read_limited
from cbit.spec.errors import WireError
from cbit.spec.receipt import Fields, read_object

DATABASE: Final = "broker.db"
_LARGEST: Final = 1 << 22  # bytes of a list, a log's line, an answer
_LARGEST_LOG: Final = 1 << 32


def _now() -> datetime:
    return datetime.now(UTC)


def _init(args: Namespace) -> Outcome:
    """Make a broker's folder."""
    args.store.mkdir(parents=True, exist_ok=True, mode=0o700)
    certificate, key = tls.make_certificate(args.store, args.name, now=_now(), entropy=SystemEntropy())
    shown = tls.fingerprint(certificate)
    event = Event(time=_now().isoformat(), what="created", details={"certificate": shown})
    SqliteStore.create(args.store / DATABASE, event).close()
    result = {
        "certificate": str(certificate),
        "fingerprint": shown,
        "names": args.name,
        "files": [str(args.store / DATABASE), str(certificate), str(key)],
        "secret_files": [str(args.store / DATABASE), str(key)],
    }
    return Outcome(ok=True, result=result, lines=lambda: _init_lines(result))


def _init_lines(result: dict[str, Any]) -> Iterator[str]:
    for name in result["files"]:
        yield f"wrote {name}" + ("  (secret: keep it here)" if name in result["secret_files"] else "")
    yield f"give {result['certificate']} to hosts and guests: they trust this certificate and no other"
    yield f"its SHA-256 is {result['fingerprint']}"


def _add(args: Namespace) -> Outcome:
    """Add a policy."""
    if args.raw is not None:
        content = read_limited(args.raw, limit=secret.LARGEST)
    else:
        entries = [(guid, read_limited(path, limit=secret.LARGEST)) for guid, path in args.entry]
        content = secret.table_of(entries)
    policy = Policy(
        name=args.policy,
        kind=Kind(args.kind),
        wishes=read_limited(args.want),
        secret=Key(content),
        certificates=_read(args.ca),
        roots=_read(args.trust),
        crls=_read(args.crl),
    )
    with _store(args) as store:
        record = _broker(store).add_policy(policy)
    return _changed(f"added policy {policy.name}", record)


def _read(paths: Iterable[Path]) -> tuple[File, ...]:
    return tuple((path.name, read_limited(path, limit=_LARGEST)) for path in paths)


def _remove(args: Namespace) -> Outcome:
    """Forget a policy."""
    with _store(args) as store:
        record = _broker(store).remove_policy(args.policy)
    return _changed(f"removed policy {args.policy}", record)


def _changed(what: str, record: Record) -> Outcome:
    result = {"record": record.number, "head": record.hash}
    return Outcome(ok=True, result=result, lines=lambda: [f"{what} (record {record.number})"])


def _list(args: Namespace) -> Outcome:
    """List the policies."""
    with _store(args) as store:
        policies = [
            {"name": p.name, "kind": p.kind.value, "digest": p.digest, "secret_size": len(p.secret)}
            for p in store.policies()
        ]
    lines = [f"{p['name']}  {p['kind']}, a secret of {p['secret_size']} bytes" for p in policies]
    return Outcome(ok=True, result={"policies": policies}, lines=lambda: lines or ["no policies"])


def _run(args: Namespace) -> Outcome:
    """Serve until SIGINT or SIGTERM."""
    with _store(args) as store, _server(args, store) as server:
        port = server.server_port
        where = shown(args.listen[0], port)
        if not args.json:
            print(f"https://{where} under {args.store / tls.CERTIFICATE}", flush=True)
        with suppress(KeyboardInterrupt):  # SIGTERM is one too (`cbit.cli.ending_signals`)
            server.serve_forever(poll_interval=0.1)
    return Outcome(
        ok=True, result={"host": where.rpartition(":")[0], "port": port}, lines=lambda: ["stopped"]
    )


def _server(args: Namespace, store: SqliteStore) -> Server:
    context = tls.server_context(args.store)
    host, port = args.listen
    try:
        return Server(args.listen, _broker(store), context=context, log=_log, family=family(host))
    except OSError as error:
        what = f"--listen {shown(host, port)}: {error.strerror or error}"
        taken = "; take another port (0 takes a free one)" if error.errno == errno.EADDRINUSE else ""
        raise OSError(f"{what}{taken}") from None


def _log(line: str) -> None:
    print(f"{_now().isoformat(timespec='seconds')} {line}", file=sys.stderr, flush=True)


def _audit(args: Namespace) -> Outcome:
    """Verify the log, and write it out if asked to."""
    insist_apart(args, "export")
    with _records(args) as records:
        last = verify_records(records.seen(), head=args.head, releases=records.releases)
        if args.export is not None:
            files.write_public(args.export, b"".join(records.lines))
    result = {
        "records": sum(records.events.values()),
        "events": dict(sorted(records.events.items())),
        "head": last.hash,
        "exported": args.export and str(args.export),
    }
    return Outcome(ok=True, result=result, lines=lambda: _audit_lines(result, args))


class _Records:
    """The log that is looked at, counted on the way."""

    def __init__(self, records: Iterable[Record], *, keep: bool, store: SqliteStore | None = None) -> None:
        self._records, self._keep, self._store = records, keep, store
        self.events: Counter[str] = Counter()
        self.lines: list[bytes] = []
        self.releases: Mapping[str, int] | None = None
        self._end: Final = ExitStack()

    def __enter__(self) -> _Records:
        if self._store is not None:
            self._end.callback(self._store.close)
            self._end.enter_context(self._store.standing_still())
            self.releases = self._store.releases()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()

    def seen(self) -> Iterator[Record]:
        for record in self._records:
            self.events[record.event.what] += 1
            if self._keep:
                self.lines.append(record.line.encode())
            yield record


def _records(args: Namespace) -> _Records:
    keep = args.export is not None
    if args.store is not None:
        store = SqliteStore(args.store / DATABASE)
        return _Records(store.records(), keep=keep, store=store)
    lines = read_limited(args.log, limit=_LARGEST_LOG).splitlines(keepends=True)
    return _Records(
        (Record.from_line(line, what=f"{args.log.name}, line {n}") for n, line in enumerate(lines, 1)),
        keep=keep,
    )


def _audit_lines(result: dict[str, Any], args: Namespace) -> Iterator[str]:
    for what, count in result["events"].items():
        yield f"{what:<16} {count}"
    yield f"head {result['head']}"
    if args.export is not None:
        yield f"wrote {args.export}"
    known = (
        " and contains the hash that you kept" if args.head else "; keep the head, and ask for it next time"
    )
    yield f"verdict: the log is whole{known}"


def _bind(args: Namespace) -> Outcome:
    """Compute the guest's REPORT_DATA."""
    insist_apart(args, "out")
    own = idblock.read_private_key(read_limited(args.key), source=args.key.name)
    nonce = _answer(args.challenge, "nonce").base64("nonce")
    data = packet.report_data(nonce, packet.public_bytes(own.public_key()))
    files.write_public(args.out, data)
    result = {"report_data": data.hex(), "file": str(args.out)}
    return Outcome(ok=True, result=result, lines=lambda: [f"report data {data.hex()}", f"wrote {args.out}"])


def _open(args: Namespace) -> Outcome:
    """Open the broker's answer in the guest."""
    own = idblock.read_private_key(read_limited(args.key), source=args.key.name)
    fields = _answer(args.answer, "public_key", "iv", "secret")
    sealed = packet.GuestPacket(
        public_key=fields.base64("public_key"), iv=fields.base64("iv"), data=fields.base64("secret")
    )
    found = packet.unseal(sealed, own=own, report=read_limited(args.report))
    files.write_private(args.out, found.material())
    result = {"file": str(args.out), "size": len(found)}
    return Outcome(ok=True, result=result, lines=lambda: [f"wrote {args.out}  (secret: {len(found)} bytes)"])


def _answer(path: Path, *wanted: str) -> Fields:
    value = read_object(read_limited(path, limit=_LARGEST), what=path.name)
    if value.get("ok") is not True:
        reasons = value.get("reasons")
        raise WireError(f"{path.name}: no good answer of a broker ({reasons or 'it gives no reasons'})")
    if missing := [name for name in wanted if name not in value]:
        raise WireError(f"{path.name}: the broker's answer to something else: no {', '.join(missing)}")
    return Fields(value, *value, what=path.name)


def _store(args: Namespace) -> closing[SqliteStore]:
    return closing(SqliteStore(args.store / DATABASE))


def _broker(store: SqliteStore) -> Broker:
    return Broker(store, clock=_now)


#: What each word of the command line does.
ACTIONS: Final[Mapping[str, Callable[[Namespace], Outcome]]] = {
    "init": _init,
    "add": _add,
    "remove": _remove,
    "list": _list,
    "run": _run,
    "audit": _audit,
    "bind": _bind,
    "open": _open,
}
