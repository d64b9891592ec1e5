"""What is shown of an adapter, by the admin API and by the commands that ask it."""

from __future__ import annotations

import msgspec


class AdapterView(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter that is served. `id` is its public name, `owner` null where it is everybody's; `source` is file, of
    the configuration, or added, by command; `priced_as` whose price it has now, null where nobody has one."""

    id: str
    model: str
    name: str
    owner: str | None
    source: str
    folder: str
    priced_as: str | None
