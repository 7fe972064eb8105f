"""``cbit owner serve``: the owner's key broker, its policies, its log, and the guest's end of it."""

from __future__ import annotations

import importlib
from argparse import Namespace
from pathlib import Path
from typing import Any, Final

from cbit.cli.addresses import address
from cbit.cli.envelope import Outcome
from cbit.cli.owner.arguments import entry
from cbit.cli.parser import Parser

HELP: Final = "a small key broker: secrets for launches that fulfil your wishes, once each"
DESCRIPTION: Final = (
    "Keep policies and secrets in a folder and serve them over HTTPS (TLS 1.3, your own certificate).\n"
    "A host gets a session and, for its launch receipt, the sealed secret; an SNP guest, for its report.\n"
    "Each launch gets it once, and everything is recorded in a log that can be verified."
)
EXAMPLE: Final = (
    "examples:\n"
    "  cbit owner serve init --store broker --name broker.example.org\n"
    "  cbit owner serve add web --store broker --kind sev --want wishes.toml \\\n"
    "      --entry 736869e5-84f0-4973-92ec-06879ce3da0b:passphrase.txt --ca ask_ark.cert\n"
    "  cbit owner serve run --store broker --listen 0.0.0.0:8443\n"
    "  cbit owner serve audit --store broker --head 5d0c…"
)


def configure(parser: Parser) -> None:
    """Declare the actions."""
    actions: Any = parser.add_subparsers(metavar="ACTION", required=True, dest="action")

    def action(name: str, text: str) -> Any:
        return actions.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=EXAMPLE
        )

    init = action("init", "make the folder of a broker: database, key, certificate")
    _add_store(init)
    init.add_argument(
        "--name",
        action="append",
        required=True,
        metavar="HOST",
        help="a host name or address under which clients ask; repeatable",
    )
    _add_policy(action("add", "add a policy and its secret"))
    remove = action("remove", "forget a policy and its secret")
    remove.add_argument("policy", metavar="NAME", help="the policy")
    _add_store(remove)
    _add_store(action("list", "list the policies, without their secrets"))
    run_parser = action("run", "serve until interrupted")
    _add_store(run_parser)
    run_parser.add_argument(
        "--listen",
        type=address,
        default=("127.0.0.1", 8443),
        metavar="HOST:PORT",
        help="where (default: 127.0.0.1:8443), [::1]:8443 for IPv6; port 0 takes a free one",
    )
    audit = action("audit", "verify the log")
    where = audit.add_mutually_exclusive_group(required=True)
    where.add_argument("--store", type=Path, metavar="DIR", help="the broker's folder")
    where.add_argument("--log", type=Path, metavar="FILE", help="an exported log")
    audit.add_argument("--head", metavar="HASH", help="a hash that an answer of the broker carried")
    audit.add_argument("--export", type=Path, metavar="FILE", help="write the log here, one record a line")
    bind = action("bind", "in the guest: compute the REPORT_DATA that binds its key to a challenge")
    bind.add_argument("--challenge", type=Path, required=True, metavar="JSON", help="the broker's answer")
    bind.add_argument(
        "--key", type=Path, required=True, metavar="PEM", help="the guest's private key on P-384"
    )
    bind.add_argument("--out", type=Path, required=True, metavar="FILE", help="64 bytes go here")
    opened = action("open", "in the guest: open the broker's answer")
    opened.add_argument("--answer", type=Path, required=True, metavar="JSON", help="the broker's answer")
    opened.add_argument("--key", type=Path, required=True, metavar="PEM", help="the guest's private key")
    opened.add_argument("--report", type=Path, required=True, metavar="FILE", help="the report that was sent")
    opened.add_argument("--out", type=Path, required=True, metavar="FILE", help="the secret goes here")


def _add_store(parser: Any) -> None:
    parser.add_argument("--store", type=Path, required=True, metavar="DIR", help="the broker's folder")


def _add_policy(parser: Any) -> None:
    parser.add_argument("policy", metavar="NAME", help="what hosts and guests ask for")
    _add_store(parser)
    parser.add_argument("--kind", choices=("sev", "snp"), required=True, help="the sort of evidence")
    parser.add_argument(
        "--want", type=Path, required=True, metavar="WISHES", help="a TOML file of what the evidence must say"
    )
    content = parser.add_mutually_exclusive_group(required=True)
    content.add_argument(
        "--entry",
        type=entry,
        action="append",
        metavar="GUID:FILE",
        help="an entry of the secret table; repeatable",
    )
    content.add_argument("--raw", type=Path, metavar="FILE", help="the secret, without a table")
    for option, metavar, text in (
        ("--ca", "FILE", "certificates that complete chains; they add nothing to what is trusted"),
        ("--trust", "ROOT", "the root of an emulator that you trust besides AMD's"),
        ("--crl", "FILE", "a revocation list (SNP)"),
    ):
        parser.add_argument(option, type=Path, action="append", default=[], metavar=metavar, help=text)


def run(args: Namespace) -> Outcome:
    """Do one of them."""
    # Database and TLS are loaded only here: no other step of the owner needs them.
    actions = importlib.import_module("cbit.cli.owner.serve_actions")
    outcome: Outcome = actions.ACTIONS[args.action](args)
    return outcome
