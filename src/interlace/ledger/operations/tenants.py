"""Organisations and their projects: create, list, show, set."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import Connection

from interlace.errors import Conflict
from interlace.ledger.directory import Organisation, Project
from interlace.ledger.operations.operation import Operation
from interlace.ledger.operations.spending import spent_this_month
from interlace.ledger.operations.words import (
    Input,
    Nothing,
    Word,
    checked_name,
    find_org,
    find_project,
    given_of,
    nanos_of,
    something_of,
    time,
    usd,
)
from interlace.ledger.registry import DEFAULT_ORGANISATION, Entry, Registry, add, alter
from interlace.ledger.retention import erase_project
from interlace.ledger.schema import organisations, projects

# --- organisations -----------------------------------------------------------------------------------------------


class NewOrg(Input, frozen=True, kw_only=True):
    """An organisation to make; `budget_usd` is a calendar month's, and null means no bound, here and below."""

    name: Word
    budget_usd: Word | None = None


class OrgNamed(Input, frozen=True, kw_only=True):
    """Which organisation, by name or id."""

    org: Word


class OrgChanges(OrgNamed, frozen=True, kw_only=True):
    """What is to change of an organisation."""

    name: Word | UnsetType = UNSET
    budget_usd: Word | UnsetType | None = UNSET


class OrgView(msgspec.Struct, frozen=True, kw_only=True):
    """An organisation. `spent_…` is this calendar month's, in the ledger's time zone."""

    id: str
    name: str
    budget_usd: str | None
    budget_nanos: int | None
    spent_usd: str
    spent_nanos: int
    created_at: str


def create_org(registry: Registry, given: NewOrg) -> OrgView:
    """Make an organisation."""
    name, budget, now = checked_name(given.name), nanos_of(given.budget_usd), registry.clock.now()

    def work(connection: Connection) -> list[Entry]:
        _refuse_org_named(registry, name)
        return [add(connection, organisations, name=name, budget_nanos=budget, created_at=now)]

    return _org(registry, registry.change(work))


def list_orgs(registry: Registry, _: Nothing) -> list[OrgView]:
    """All organisations, by name."""
    spent = spent_this_month(registry, "org")
    there = sorted(registry.directory.organisations.values(), key=lambda org: org.name)
    return [_org_view(org, spent.get(org.id, 0)) for org in there]


def show_org(registry: Registry, given: OrgNamed) -> OrgView:
    """One organisation."""
    return _org(registry, [find_org(registry, given.org)])


def set_org(registry: Registry, given: OrgChanges) -> OrgView:
    """Change name or budget; what runs keeps what it has reserved."""
    values = something_of(_changes(given.name, given.budget_usd))

    def work(connection: Connection) -> list[Entry]:
        org = find_org(registry, given.org)
        if "name" in values and values["name"] != org.name:
            _refuse_org_named(registry, str(values["name"]))
        return [alter(connection, organisations, org.id, **values)]

    return _org(registry, registry.change(work))


def _refuse_org_named(registry: Registry, name: str) -> None:
    if any(org.name == name for org in registry.directory.organisations.values()):
        raise Conflict(f"There is an organisation {name!r} already. Choose another name.", param="name")


def _changes(name: str | UnsetType, budget_usd: str | UnsetType | None) -> dict[str, object]:
    """The columns to change, of what both organisations and projects have."""
    return given_of(
        name=name if isinstance(name, UnsetType) else checked_name(name),
        budget_nanos=budget_usd if isinstance(budget_usd, UnsetType) else nanos_of(budget_usd),
    )


def _org(registry: Registry, entries: list[Entry]) -> OrgView:
    (org,) = entries
    assert isinstance(org, Organisation)
    return _org_view(org, spent_this_month(registry, "org", org.id).get(org.id, 0))


def _org_view(org: Organisation, spent: int) -> OrgView:
    return OrgView(
        id=org.id,
        name=org.name,
        budget_usd=usd(org.budget_nanos),
        budget_nanos=org.budget_nanos,
        spent_usd=usd(spent),
        spent_nanos=spent,
        created_at=time(org.created_at),
    )


# --- projects ----------------------------------------------------------------------------------------------------


class NewProject(Input, frozen=True, kw_only=True):
    """A project to make, in the organisation `default` unless another is named."""

    name: Word
    org: Word = DEFAULT_ORGANISATION
    budget_usd: Word | None = None


class ProjectFilter(Input, frozen=True, kw_only=True):
    """Of which organisation; left out: of all."""

    org: Word | None = None


class ProjectNamed(Input, frozen=True, kw_only=True):
    """Which project, by name or id; `org` tells two of one name apart."""

    project: Word
    org: Word | None = None


class ProjectChanges(ProjectNamed, frozen=True, kw_only=True):
    """What is to change of a project."""

    name: Word | UnsetType = UNSET
    budget_usd: Word | UnsetType | None = UNSET


class ProjectView(msgspec.Struct, frozen=True, kw_only=True):
    """A project. `spent_…` is this calendar month's, in the ledger's time zone."""

    id: str
    name: str
    org: str
    org_id: str
    budget_usd: str | None
    budget_nanos: int | None
    spent_usd: str
    spent_nanos: int
    created_at: str
    erased_at: str | None


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """A project whose events have lost their details: `erased_events` of them now."""

    id: str
    name: str
    org: str
    erased_at: str | None
    erased_events: int


def create_project(registry: Registry, given: NewProject) -> ProjectView:
    """Make a project."""
    name, budget, now = checked_name(given.name), nanos_of(given.budget_usd), registry.clock.now()

    def work(connection: Connection) -> list[Entry]:
        org = find_org(registry, given.org)
        _refuse_project_named(registry, org.id, name)
        return [add(connection, projects, org_id=org.id, name=name, budget_nanos=budget, created_at=now)]

    return _project(registry, registry.change(work))


def list_projects(registry: Registry, given: ProjectFilter) -> list[ProjectView]:
    """All projects, by organisation and name."""
    owner = None if given.org is None else find_org(registry, given.org).id
    there = [each for each in list(registry.directory.projects.values()) if owner in (None, each.org_id)]
    spent = spent_this_month(registry, "project")
    views = [_project_view(registry, project, spent.get(project.id, 0)) for project in there]
    return sorted(views, key=lambda view: (view.org, view.name))


def show_project(registry: Registry, given: ProjectNamed) -> ProjectView:
    """One project."""
    return _project(registry, [find_project(registry, given.project, given.org)])


def set_project(registry: Registry, given: ProjectChanges) -> ProjectView:
    """Change name or budget; what runs keeps what it has reserved."""
    values = something_of(_changes(given.name, given.budget_usd))

    def work(connection: Connection) -> list[Entry]:
        project = find_project(registry, given.project, given.org)
        if "name" in values and values["name"] != project.name:
            _refuse_project_named(registry, project.org_id, str(values["name"]))
        return [alter(connection, projects, project.id, **values)]

    return _project(registry, registry.change(work))


def erase(registry: Registry, given: ProjectNamed) -> Erasure:
    """Empty the details of a project's events so far, and delete what it left here; sums stay."""
    project = find_project(registry, given.project, given.org)
    count = erase_project(registry, project.id)
    now = registry.directory.projects[project.id]
    org = registry.directory.organisations[project.org_id].name
    return Erasure(id=project.id, name=project.name, org=org, erased_at=time(now.erased_at), erased_events=count)


def _refuse_project_named(registry: Registry, org_id: str, name: str) -> None:
    if any(each.name == name and each.org_id == org_id for each in registry.directory.projects.values()):
        raise Conflict(f"The organisation has a project {name!r} already. Choose another name.", param="name")


def _project(registry: Registry, entries: list[Entry]) -> ProjectView:
    (project,) = entries
    assert isinstance(project, Project)
    return _project_view(registry, project, spent_this_month(registry, "project", project.id).get(project.id, 0))


def _project_view(registry: Registry, project: Project, spent: int) -> ProjectView:
    return ProjectView(
        id=project.id,
        name=project.name,
        org=registry.directory.organisations[project.org_id].name,
        org_id=project.org_id,
        budget_usd=usd(project.budget_nanos),
        budget_nanos=project.budget_nanos,
        spent_usd=usd(spent),
        spent_nanos=spent,
        created_at=time(project.created_at),
        erased_at=time(project.erased_at),
    )


ORGS = (
    Operation("orgs.create", "POST", "/orgs", "Make an organisation.", NewOrg, OrgView, create_org),
    Operation("orgs.list", "GET", "/orgs", "All organisations.", Nothing, list[OrgView], list_orgs),
    Operation("orgs.show", "GET", "/orgs/{org}", "One organisation.", OrgNamed, OrgView, show_org),
    Operation("orgs.set", "PATCH", "/orgs/{org}", "Change an organisation.", OrgChanges, OrgView, set_org),
)
PROJECTS = (
    Operation("projects.create", "POST", "/projects", "Make a project.", NewProject, ProjectView, create_project),
    Operation("projects.list", "GET", "/projects", "All projects.", ProjectFilter, list[ProjectView], list_projects),
    Operation("projects.show", "GET", "/projects/{project}", "One project.", ProjectNamed, ProjectView, show_project),
    Operation("projects.set", "PATCH", "/projects/{project}", "Change one.", ProjectChanges, ProjectView, set_project),
    Operation(
        "projects.erase", "POST", "/projects/{project}/erase", "Erase events' details.", ProjectNamed, Erasure, erase
    ),
)
