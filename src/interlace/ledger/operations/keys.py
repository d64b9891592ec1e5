"""API keys: create, list, show, set, rotate, revoke. A key's text is told once and kept as its keyed hash only."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import Connection

from interlace.errors import Conflict, InvalidRequest
from interlace.ledger.directory import Key, Plan, hint_of, new_key
from interlace.ledger.operations.operation import Operation
from interlace.ledger.operations.spending import spent_this_month
from interlace.ledger.operations.words import (
    LONGEST_NAME,
    Input,
    Word,
    Words,
    checked_models,
    checked_name,
    find_key,
    find_org,
    find_plan,
    find_project,
    given_of,
    moment_of,
    nanos_of,
    something_of,
    time,
    usd,
)
from interlace.ledger.registry import Entry, Registry, add, alter
from interlace.ledger.schema import api_keys

Scope = Literal["inference", "admin"]
Scopes = Annotated[list[Scope], msgspec.Meta(min_length=1, max_length=2)]
State = Literal["active", "expired", "revoked"]


class NewKey(Input, frozen=True, kw_only=True):
    """A key to make. Without a name it gets one; the scope `admin` lets it do everything under `/admin/v1`, in every
    organisation. Null means: no plan, every model the plan allows, never expires, no budget of its own."""

    project: Word
    org: Word | None = None
    plan: Word | None = None
    name: Word | None = None
    scopes: Scopes = msgspec.field(default_factory=lambda: ["inference"])
    models: Words | None = None
    expires_at: Word | None = None
    budget_usd: Word | None = None


class KeyFilter(Input, frozen=True, kw_only=True):
    """Of which organisation or project, and in which state; left out: any."""

    project: Word | None = None
    org: Word | None = None
    state: State | None = None


class KeyNamed(Input, frozen=True, kw_only=True):
    """Which key, by name or id; `project` and `org` tell two of one name apart."""

    key: Word
    project: Word | None = None
    org: Word | None = None


class KeyChanges(KeyNamed, frozen=True, kw_only=True):
    """What is to change of a key. `force` lets the last key with the scope `admin` expire."""

    name: Word | UnsetType = UNSET
    plan: Word | UnsetType | None = UNSET
    models: Words | UnsetType | None = UNSET
    expires_at: Word | UnsetType | None = UNSET
    budget_usd: Word | UnsetType | None = UNSET
    force: bool = False


class KeyToEnd(KeyNamed, frozen=True, kw_only=True):
    """Which key to revoke, or to give a new text. `force` does so to the last one with the scope `admin` too."""

    force: bool = False


class KeyView(msgspec.Struct, frozen=True, kw_only=True):
    """A key without its text; `hint` is the end of it. `spent_…` is this calendar month's."""

    id: str
    name: str
    hint: str
    state: State
    project: str
    project_id: str
    org: str
    org_id: str
    plan: str | None
    plan_id: str | None
    scopes: list[str]
    models: list[str] | None
    budget_usd: str | None
    budget_nanos: int | None
    spent_usd: str
    spent_nanos: int
    created_at: str
    expires_at: str | None
    revoked_at: str | None


class KeyWithText(KeyView, frozen=True, kw_only=True):
    """A new key, with the text of it: shown this once."""

    key: str


# --- what there is -----------------------------------------------------------------------------------------------


def list_keys(registry: Registry, given: KeyFilter) -> list[KeyView]:
    """All keys, by organisation, project and name."""
    project = None if given.project is None else find_project(registry, given.project, given.org)
    org = None if given.org is None else find_org(registry, given.org)
    spent = spent_this_month(registry, "key")
    views = [_view(registry, key, spent.get(key.id, 0)) for key in list(registry.directory.keys.values())]
    there = [
        view
        for view in views
        if (project is None or view.project_id == project.id)
        and (org is None or view.org_id == org.id)
        and given.state in (None, view.state)
    ]
    return sorted(there, key=lambda view: (view.org, view.project, view.name, view.created_at))


def show_key(registry: Registry, given: KeyNamed) -> KeyView:
    """One key."""
    return _shown(registry, find_key(registry, given.key, given.project, given.org))


# --- what changes ------------------------------------------------------------------------------------------------


def create_key(registry: Registry, given: NewKey) -> KeyWithText:
    """Make a key."""
    text, now = new_key(), registry.clock.now()
    name = None if given.name is None else checked_name(given.name)
    models, budget = checked_models(given.models), nanos_of(given.budget_usd)
    expires = None if given.expires_at is None else _future(registry, given.expires_at)

    def work(connection: Connection) -> list[Entry]:
        project = find_project(registry, given.project, given.org)
        plan = None if given.plan is None else _usable_plan(registry, given.plan)
        key = add(
            connection,
            api_keys,
            project_id=project.id,
            plan_id=None if plan is None else plan.id,
            name=_free_name(registry, project.id, name),
            digest=registry.hasher.digest(text),
            hint=hint_of(text),
            scopes=json.dumps(list(dict.fromkeys(given.scopes))),
            models=None if models is None else json.dumps(models),
            budget_nanos=budget,
            created_at=now,
            expires_at=expires,
        )
        return [key]

    return _with_text(registry, registry.change(work)[0], text)


def set_key(registry: Registry, given: KeyChanges) -> KeyView:
    """Change name, plan, models, expiry or budget; its next request is held to them."""
    name = given.name if isinstance(given.name, UnsetType) else checked_name(given.name)
    models = given.models if isinstance(given.models, UnsetType) else checked_models(given.models)
    values = given_of(
        name=name,
        models=json.dumps(models) if isinstance(models, list) else models,
        budget_nanos=given.budget_usd if isinstance(given.budget_usd, UnsetType) else nanos_of(given.budget_usd),
        expires_at=_future(registry, given.expires_at) if isinstance(given.expires_at, str) else given.expires_at,
        plan_id=given.plan,
    )

    def work(connection: Connection) -> list[Entry]:
        key = find_key(registry, given.key, given.project, given.org)
        changes = something_of(values)
        if key.revoked_at is not None:
            raise _is_revoked(key)
        if isinstance(given.plan, str):
            changes |= {"plan_id": _usable_plan(registry, given.plan).id}
        if isinstance(name, str) and name != key.name:
            _free_name(registry, key.project_id, name)
        if isinstance(given.expires_at, str):
            _keep_an_admin(registry, key, force=given.force, but="expire")
        return [alter(connection, api_keys, key.id, **changes)]

    return _shown(registry, registry.change(work)[0])


def rotate_key(registry: Registry, given: KeyToEnd) -> KeyWithText:
    """Give a key a new text; the old one stops at once. Everything else of it stays, its budget and use too."""
    text, now = new_key(), registry.clock.now()

    def work(connection: Connection) -> list[Entry]:
        key = find_key(registry, given.key, given.project, given.org)
        if key.revoked_at is not None:
            raise _is_revoked(key)
        _keep_an_admin(registry, key, force=given.force, but="get a new text")
        digest, hint = registry.hasher.digest(text), hint_of(text)
        entries = [alter(connection, api_keys, key.id, digest=digest, hint=hint)]
        # The old text stays known as revoked: a server that starts with it must not take it for a new key.
        return [*entries, _buried(connection, key, now)]

    return _with_text(registry, registry.change(work)[0], text)


def revoke_key(registry: Registry, given: KeyToEnd) -> KeyView:
    """Revoke a key, for good; a second time changes nothing."""
    now = registry.clock.now()

    def work(connection: Connection) -> list[Entry]:
        key = find_key(registry, given.key, given.project, given.org)
        if key.revoked_at is not None:
            return [key]
        _keep_an_admin(registry, key, force=given.force, but="be revoked")
        return [alter(connection, api_keys, key.id, revoked_at=now)]

    return _shown(registry, registry.change(work)[0])


# --- rules -------------------------------------------------------------------------------------------------------


def _future(registry: Registry, text: str) -> int:
    moment = moment_of(text, "expires_at")
    if moment <= registry.clock.now():
        raise InvalidRequest("`expires_at` lies in the past. Name a later moment, or revoke it.", param="expires_at")
    return moment


def _usable_plan(registry: Registry, word: str) -> Plan:
    plan = find_plan(registry, word)
    if plan.retired_at is not None:
        raise Conflict(f"interlace.yaml has no plan {plan.name!r} any more. Choose another plan.", param="plan")
    return plan


def _free_name(registry: Registry, project_id: str, name: str | None) -> str:
    """The name if no living key of the project has it, or the first free one of key-1, key-2, ..."""
    keys = [key for key in registry.directory.keys.values() if key.project_id == project_id]
    if name is None:
        taken = {key.name for key in keys}
        return next(name for number in range(1, len(keys) + 2) if (name := f"key-{number}") not in taken)
    if any(key.name == name and key.revoked_at is None for key in keys):
        raise Conflict(f"The project has a key {name!r} already. Choose another name, or revoke it.", param="name")
    return name


def _keep_an_admin(registry: Registry, key: Key, *, force: bool, but: str) -> None:
    """Refuse to end the last key that can undo it."""
    if force or "admin" not in key.scopes or _state(registry, key) != "active":
        return
    for other in registry.directory.keys.values():
        if other.id != key.id and "admin" in other.scopes and other.revoked_at is None and other.expires_at is None:
            return
    raise Conflict(
        f"{key.name!r} is the last lasting key with the scope `admin`, so it must not {but} by accident. Make another "
        "one first, or say `force`.",
        param="force",
        code="last_admin_key",
    )


def _is_revoked(key: Key) -> Conflict:
    return Conflict(f"The key {key.name!r} was revoked, for good. Make a new one.", param="key", code="key_revoked")


def _buried(connection: Connection, key: Key, now: int) -> Entry:
    return add(
        connection,
        api_keys,
        project_id=key.project_id,
        plan_id=key.plan_id,
        name=f"{key.name[: LONGEST_NAME - 10]} (rotated)",
        digest=key.digest,
        hint=key.hint,
        scopes=json.dumps(key.scopes),
        created_at=key.created_at,
        revoked_at=now,
    )


# --- showing -----------------------------------------------------------------------------------------------------


def _state(registry: Registry, key: Key) -> State:
    if key.revoked_at is not None:
        return "revoked"
    return "active" if key.expires_at is None or key.expires_at > registry.clock.now() else "expired"


def _shown(registry: Registry, key: Entry) -> KeyView:
    assert isinstance(key, Key)
    return _view(registry, key, spent_this_month(registry, "key", key.id).get(key.id, 0))


def _with_text(registry: Registry, key: Entry, text: str) -> KeyWithText:
    return KeyWithText(**msgspec.structs.asdict(_shown(registry, key)), key=text)


def _view(registry: Registry, key: Key, spent: int) -> KeyView:
    directory = registry.directory
    project = directory.projects[key.project_id]
    return KeyView(
        id=key.id,
        name=key.name,
        hint=key.hint,
        state=_state(registry, key),
        project=project.name,
        project_id=project.id,
        org=directory.organisations[project.org_id].name,
        org_id=project.org_id,
        plan=None if key.plan_id is None else directory.plans[key.plan_id].name,
        plan_id=key.plan_id,
        scopes=list(key.scopes),
        models=None if key.models is None else list(key.models),
        budget_usd=usd(key.budget_nanos),
        budget_nanos=key.budget_nanos,
        spent_usd=usd(spent),
        spent_nanos=spent,
        created_at=time(key.created_at),
        expires_at=time(key.expires_at),
        revoked_at=time(key.revoked_at),
    )


KEYS = (
    Operation("keys.create", "POST", "/keys", "Make a key; its text is told once.", NewKey, KeyWithText, create_key),
    Operation("keys.list", "GET", "/keys", "All keys.", KeyFilter, list[KeyView], list_keys),
    Operation("keys.show", "GET", "/keys/{key}", "One key.", KeyNamed, KeyView, show_key),
    Operation("keys.set", "PATCH", "/keys/{key}", "Change a key.", KeyChanges, KeyView, set_key),
    Operation("keys.rotate", "POST", "/keys/{key}/rotate", "A new text for it.", KeyToEnd, KeyWithText, rotate_key),
    Operation("keys.revoke", "POST", "/keys/{key}/revoke", "Revoke a key.", KeyToEnd, KeyView, revoke_key),
)
