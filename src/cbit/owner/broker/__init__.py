"""The key broker: one owner's policies and secrets, and who got which, when, and why.

    host ── chain ──> session ── launch ── receipt ──> the secret, sealed for that launch      SEV, SEV-ES
    guest ── challenge ── report, its own key ──────> the secret, sealed for that key          SNP

One launch gets one release.  A release and its record are one transaction of the database, which is over
before the answer leaves: whenever the process is killed, no secret has left without a record, and none
leaves twice.  Who never got an answer launches again.

``Broker`` is the rules, ``Store`` what it keeps them in, ``server`` the wire.
"""

from cbit.owner.broker.audit import Record, verify_records
from cbit.owner.broker.rules import Broker, Refused
from cbit.owner.broker.store import AlreadyReleased, Kind, Launch, Policy, Store

__all__ = (
    "AlreadyReleased",
    "Broker",
    "Kind",
    "Launch",
    "Policy",
    "Record",
    "Refused",
    "Store",
    "verify_records",
)
