"""The commands about who may use the server, and whom it tells of its jobs."""

from __future__ import annotations

import base64
import secrets
import time
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tunesmith.errors import UsageError
from tunesmith.options import AsJson, out, print_json

if TYPE_CHECKING:
    from tunesmith.store import Store

keys_app = typer.Typer(no_args_is_help=True, help="The API keys of the server.")
webhooks_app = typer.Typer(no_args_is_help=True, help="URLs that are told of jobs that end.")

ProjectName = Annotated[str, typer.Option("--project", help="The project's name.")]


@keys_app.command("make")
def make_key(
    name: Annotated[str, typer.Argument(help="What you know the key by.")],
    project: ProjectName = "default",
    role: Annotated[
        Literal["admin", "write", "read"],
        typer.Option(help="read: look; write: change, train and chat; admin: permissions too."),
    ] = "write",
    as_json: AsJson = False,
) -> None:
    """A new key of a project, which is made when it is not there. The key is shown this once."""
    with _store() as store:
        key, secret = store.keys.make(name, project=project, role=role)
        _note(store, key.project, "keys.create", key.id)
    if as_json:
        print_json({**asdict(key), "secret": secret})
    else:
        out.print(secret, markup=False)


@keys_app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """All keys, newest first."""
    with _store() as store:
        found, names = store.keys.list(), store.keys.projects()
    if as_json:
        print_json([{**asdict(key), "project": names[key.project]} for key in found])
        return
    for key in found:
        ended = f", revoked {_when(key.revoked_at)}" if key.revoked_at else ""
        told = f"{key.role} of {names[key.project]}, {key.hint}..., made {_when(key.created_at)}"
        out.print(f"{key.id}  {key.name}\n    {told}{ended}", markup=False)


@keys_app.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Close a key for good; a running server hears of it within seconds."""
    with _store() as store:
        project = next((key.project for key in store.keys.list() if key.id == key_id), "")
        if not store.keys.revoke(key_id):
            raise UsageError(f"there is no open key {key_id}", remedy="See tunesmith keys list.")
        _note(store, project, "keys.revoke", key_id)


@keys_app.command("log")
def show_log(
    limit: Annotated[int, typer.Option(help="The newest so many.", min=1)] = 100,
    as_json: AsJson = False,
) -> None:
    """Every change that was made through the API or with keys and webhooks, newest first."""
    with _store() as store:
        lines, names = store.keys.log(limit), store.keys.projects()
    if as_json:
        print_json([asdict(line) for line in lines])
        return
    for line in lines:
        who = f"{names.get(line.project, line.project)} {line.key or 'without a key'}"
        out.print(f"{_when(line.at)}  {line.action}  {line.subject}  {who}", markup=False)


@webhooks_app.command("add")
def add_webhook(
    url: str,
    project: ProjectName = "default",
    as_json: AsJson = False,
) -> None:
    """Tell a URL of jobs that end. The secret that signs what is sent is shown this once."""
    from tunesmith.models.fetch import home
    from tunesmith.outside import fault
    from tunesmith.settings import FILE, Settings

    said = fault(url, Settings.read(home()).private_hosts)
    if said is not None:
        raise UsageError(
            said,
            expected="an https URL, or one of a host in private_hosts",
            remedy=f"private_hosts is a list in {home() / FILE}.",
        )
    secret = f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"
    with _store() as store:
        hook = store.webhooks.add(_project(store, project), url, secret)
        _note(store, hook.project, "webhooks.create", hook.id)
    if as_json:
        print_json(asdict(hook))
    else:
        out.print(secret, markup=False)


@webhooks_app.command("list")
def list_webhooks(as_json: AsJson = False) -> None:
    """All webhooks, oldest first."""
    with _store() as store:
        found, names = store.webhooks.list(), store.keys.projects()
    rows = [
        {"id": hook.id, "project": names[hook.project], "url": hook.url, "made": hook.created_at}
        for hook in found
    ]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        out.print(f"{row['id']}  {row['url']}\n    of {row['project']}", markup=False)


@webhooks_app.command("remove")
def remove_webhook(webhook_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Tell it no more; what is still on its way to it is dropped."""
    with _store() as store:
        hook = next((hook for hook in store.webhooks.list() if hook.id == webhook_id), None)
        if hook is None or not store.webhooks.remove(webhook_id):
            raise UsageError(
                f"there is no webhook {webhook_id}", remedy="See tunesmith webhooks list."
            )
        _note(store, hook.project, "webhooks.delete", webhook_id)


def _store() -> Store:
    from tunesmith.models.fetch import home
    from tunesmith.store import Store

    return Store.at(home())


def _project(store: Store, name: str) -> str:
    """The id of a project."""
    ids = {known: project for project, known in store.keys.projects().items()}
    if name not in ids:
        raise UsageError(
            f"there is no project {name}",
            expected=f"one of {', '.join(ids)}",
            remedy=f"The first key makes it: tunesmith keys make NAME --project {name}",
        )
    return ids[name]


def _note(store: Store, project: str, action: str, subject: str) -> None:
    from tunesmith.store.keys import Entry

    store.keys.note(Entry(time.time(), project, None, action, subject))


def _when(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().isoformat(sep=" ", timespec="seconds")
