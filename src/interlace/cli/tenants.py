"""Who: organisations, their projects, and API keys."""

from __future__ import annotations

from typing import Annotated

import typer

from interlace.cli.options import Budget, Models, Org, Project, Rename
from interlace.cli.verb import Given, listed, verb_of

orgs = typer.Typer(no_args_is_help=True, help="Organisations: who projects belong to.")
projects = typer.Typer(no_args_is_help=True, help="Projects: what keys belong to.")
keys = typer.Typer(no_args_is_help=True, help="API keys: who may ask, with what scopes, models and limits.")

Expires = Annotated[
    str | None, typer.Option("--expires", metavar="TIME", help="A date, or a time with its offset; none: never.")
]
Force = Annotated[bool, typer.Option("--force", help="Even the last key with the scope admin.")]


# --- organisations and projects ----------------------------------------------------------------------------------


@verb_of(orgs, "orgs.create")
def orgs_create(name: Annotated[str, typer.Argument(metavar="NAME")], budget_usd: Budget = None) -> Given:
    """Make an organisation.

    Example: interlace orgs create acme --budget-usd 500
    """
    return {"name": name, "budget_usd": budget_usd}


@verb_of(orgs, "orgs.list")
def orgs_list() -> Given:
    """List the organisations, with what they spent this month.

    Example: interlace orgs list
    """
    return {}


@verb_of(orgs, "orgs.show")
def orgs_show(org: Annotated[str, typer.Argument(metavar="ORG")]) -> Given:
    """Show one organisation.

    Example: interlace orgs show acme
    """
    return {"org": org}


@verb_of(orgs, "orgs.set")
def orgs_set(
    org: Annotated[str, typer.Argument(metavar="ORG")], name: Rename = None, budget_usd: Budget = None
) -> Given:
    """Change an organisation's name or budget.

    Example: interlace orgs set acme --budget-usd 750
    """
    return {"org": org, "name": name, "budget_usd": budget_usd}


@verb_of(projects, "projects.create")
def projects_create(
    name: Annotated[str, typer.Argument(metavar="NAME")], org: Org = None, budget_usd: Budget = None
) -> Given:
    """Make a project, in the organisation `default` unless another is named.

    Example: interlace projects create search --org acme --budget-usd 50
    """
    return {"name": name, "org": org, "budget_usd": budget_usd}


@verb_of(projects, "projects.list")
def projects_list(org: Org = None) -> Given:
    """List the projects, with what they spent this month.

    Example: interlace projects list --org acme
    """
    return {"org": org}


@verb_of(projects, "projects.show")
def projects_show(project: Annotated[str, typer.Argument(metavar="PROJECT")], org: Org = None) -> Given:
    """Show one project.

    Example: interlace projects show search
    """
    return {"project": project, "org": org}


@verb_of(projects, "projects.set")
def projects_set(
    project: Annotated[str, typer.Argument(metavar="PROJECT")],
    org: Org = None,
    name: Rename = None,
    budget_usd: Budget = None,
) -> Given:
    """Change a project's name or budget.

    Example: interlace projects set search --budget-usd none
    """
    return {"project": project, "org": org, "name": name, "budget_usd": budget_usd}


@verb_of(projects, "projects.erase")
def projects_erase(project: Annotated[str, typer.Argument(metavar="PROJECT")], org: Org = None) -> Given:
    """Delete a project's files, batches and responses, and empty the details of its usage events: tags, endpoint,
    times. What it used and what it cost stay.

    Example: interlace projects erase search
    """
    return {"project": project, "org": org}


# --- keys --------------------------------------------------------------------------------------------------------

PlanOfKey = Annotated[str | None, typer.Option("--plan", metavar="PLAN", help="The plan, by name or id.")]
KeyWord = Annotated[str, typer.Argument(metavar="KEY", help="The key, by name or id; never its text.")]


@verb_of(keys, "keys.create")
def keys_create(
    project: Annotated[str, typer.Option("--project", metavar="PROJECT", help="The project, by name or id.")],
    org: Org = None,
    plan: PlanOfKey = None,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="What to call it; else key-1, ...")] = None,
    scopes: Annotated[
        str | None, typer.Option("--scopes", metavar="A,B", help="inference (the default), admin, or both.")
    ] = None,
    models: Models = None,
    expires: Expires = None,
    budget_usd: Budget = None,
) -> Given:
    """Make an API key. Its text is shown this once.

    Example: interlace keys create --project search --plan gold --name ci
    """
    own = {"project": project, "org": org, "plan": plan, "name": name, "scopes": listed(scopes)}
    return own | {"models": listed(models), "expires_at": expires, "budget_usd": budget_usd}


@verb_of(keys, "keys.list")
def keys_list(
    project: Project = None,
    org: Org = None,
    state: Annotated[str | None, typer.Option("--state", help="active, expired or revoked; else all.")] = None,
) -> Given:
    """List the keys, with what they spent this month.

    Example: interlace keys list --project search --state active
    """
    return {"project": project, "org": org, "state": state}


@verb_of(keys, "keys.show")
def keys_show(key: KeyWord, project: Project = None, org: Org = None) -> Given:
    """Show one key, without its text.

    Example: interlace keys show ci
    """
    return {"key": key, "project": project, "org": org}


@verb_of(keys, "keys.set")
def keys_set(
    key: KeyWord,
    project: Project = None,
    org: Org = None,
    name: Rename = None,
    plan: PlanOfKey = None,
    models: Models = None,
    expires: Expires = None,
    budget_usd: Budget = None,
    force: Force = False,
) -> Given:
    """Change a key's name, plan, models, expiry or budget.

    Example: interlace keys set ci --plan silver --expires 2027-01-01
    """
    which = {"key": key, "project": project, "org": org, "force": force or None}
    return which | {
        "name": name,
        "plan": plan,
        "models": listed(models),
        "expires_at": expires,
        "budget_usd": budget_usd,
    }


@verb_of(keys, "keys.rotate")
def keys_rotate(key: KeyWord, project: Project = None, org: Org = None, force: Force = False) -> Given:
    """Give a key a new text, shown this once; the old one stops at once.

    Example: interlace keys rotate ci
    """
    return {"key": key, "project": project, "org": org, "force": force or None}


@verb_of(keys, "keys.revoke")
def keys_revoke(key: KeyWord, project: Project = None, org: Org = None, force: Force = False) -> Given:
    """Revoke a key, for good and at once.

    Example: interlace keys revoke ci
    """
    return {"key": key, "project": project, "org": org, "force": force or None}
