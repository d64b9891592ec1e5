"""What is shown of a model, by the admin API and by the commands that ask it."""

from __future__ import annotations

import msgspec


class ModelView(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is served. `owner` null where it is everybody's; `source` is file, of the configuration, or added,
    by command; `checkpoint` null where a provider has it; `priced_as` whose price it has now, null where nobody has
    one; `state` and `detail` how its engine is."""

    id: str
    checkpoint: str | None
    owner: str | None
    source: str
    engine: str
    state: str
    detail: str
    priced_as: str | None
