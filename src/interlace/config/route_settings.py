# ruff: noqa: RUF009 (`setting` is a field specifier; ruff knows only `field` itself)
"""What a route can be set to: which models are behind a public name, and how one of them is chosen."""

from __future__ import annotations

from dataclasses import dataclass

from interlace.config.setting import setting

NEEDS = ("chat", "completion", "embed", "score", "tools", "json", "vision")
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """When a model is taken for broken. One breaker a model, for all routes, callers and workers of the machine."""

    failures: int = setting(
        "So many failures within `window_seconds`, no caller's fault among them, and every route asks this model last; "
        "0: never.",
        5,
        minimum=0,
        maximum=1000,
    )
    window_seconds: float = setting("How long a failure counts.", 30.0, minimum=0.1)
    open_seconds: float = setting(
        "How long it is asked last; then one request probes it, and decides.", 30.0, minimum=0.01
    )


@dataclass(frozen=True, slots=True)
class WhenSettings:
    """Which requests an entry is for; every condition that is given must hold."""

    needs: tuple[str, ...] = setting("Requests that need one of these.", (), choices=NEEDS)
    least_characters: int = setting("Shortest prompt, in characters of all its texts.", 0, minimum=0)
    most_characters: int | None = setting("Longest prompt, in characters of all its texts.", None, minimum=0)
    plans: tuple[str, ...] = setting("Callers on one of these plans.", ())
    tags: tuple[str, ...] = setting("Requests with one of these tags (header `x-interlace-tags`).", ())
    hours: str | None = setting("Time of day, such as 08:00-18:00; 22:00-06:00 goes over midnight.", None)
    weekdays: tuple[str, ...] = setting("Days of the week.", (), choices=WEEKDAYS)
    time_zone: str = setting("Whose clock `hours` and `weekdays` mean, such as Africa/Nairobi.", "UTC")


@dataclass(frozen=True, slots=True)
class MemberSettings:
    """A model of a route."""

    model: str = setting("The public name of one of the models.")
    weight: int = setting("Its share of requests, beside the weights of the others.", 1, minimum=0, maximum=1_000_000)
    when: WhenSettings = setting("Which requests it is for; left out: all.", factory=WhenSettings)


@dataclass(frozen=True, slots=True)
class FallbackSettings:
    """A model that is asked when those before it could not answer."""

    model: str = setting("The public name of one of the models.")
    when: WhenSettings = setting("Which requests it is for; left out: all.", factory=WhenSettings)


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """Whether a model that failed is asked again, before the next one is, while the caller has seen nothing yet."""

    times: int = setting("How often a model is asked again.", 1, minimum=0, maximum=10)
    first_seconds: float = setting(
        "The longest first pause; a random part of it is waited, and twice as long each time.", 0.2, minimum=0
    )
    longest_seconds: float = setting(
        "The longest pause. A model that asks for more (Retry-After) is not asked again; the next one is.",
        2.0,
        minimum=0,
    )


@dataclass(frozen=True, slots=True)
class HedgeSettings:
    """Whether a second model is asked when the first is slow to begin. Who says the first token answers; the other is
    stopped, and what it had used by then is billed too."""

    percentile: int = setting(
        "Hedge when the first token takes longer than so many per cent of the model's recent ones; 0: never.",
        0,
        minimum=0,
        maximum=99,
    )
    least_seconds: float = setting(
        "Never sooner than this; also the delay while fewer than ten first tokens are known.", 1.0, minimum=0.001
    )


@dataclass(frozen=True, slots=True)
class PartSettings:
    """A model that gets part of the requests."""

    model: str = setting("The public name of one of the models; left out: none.", "")
    percent: float = setting("How many of a hundred requests.", 0.0, minimum=0, maximum=100)


@dataclass(frozen=True, slots=True)
class OpenFirstSettings:
    """With `policy: open_first`: when an answer of the local model does not do, and the next model must be asked."""

    refusals: tuple[str, ...] = setting(
        "Regular expressions; an answer that begins with one of them is a refusal.",
        (
            r"(?i)(i'm|i am) (very )?sorry",
            r"(?i)(sorry, )?(but )?(i|we) (can't|cannot|can not|am unable|'m unable|won't)",
            r"(?i)as an ai( language model)?",
        ),
    )
    least_mean_logprob: float | None = setting(
        "The mean logprob of its tokens below which an answer is not trusted, such as -1.0; left out: not looked at.",
        None,
        maximum=0,
    )


@dataclass(frozen=True, slots=True)
class ReuseSettings:
    """Whether the very same request is answered again from memory, within its project."""

    seconds: float = setting("How long an answer is kept; 0: not at all.", 0.0, minimum=0)
    entries: int = setting("Answers kept at most.", 1000, minimum=1, maximum=1_000_000)
    entry_bytes: int = setting("Longest answer that is kept; sizes such as 64KiB are understood.", 1 << 18, minimum=1)
    percent: int = setting("What an answer from memory costs, in per cent of its price.", 0, minimum=0, maximum=100)


@dataclass(frozen=True, slots=True)
class RouteSettings:
    """A public name with several models behind it."""

    name: str = setting("The public name callers put into `model`; no model has it.")
    models: tuple[MemberSettings, ...] = setting("The models that share its requests.")
    fallbacks: tuple[FallbackSettings, ...] = setting("Who is asked after them, in this order.", ())
    policy: str = setting(
        "Which model goes first: by weight, the cheapest, the fastest to its first token, or the first local one, the "
        "others when it will not do.",
        "weighted",
        choices=("weighted", "cheapest", "fastest", "open_first"),
    )
    sticky: bool = setting(
        "Keep a conversation at its model: by the header `x-interlace-conversation`, else `prompt_cache_key`, else by "
        "how the conversation begins.",
        False,
    )
    retries: RetrySettings = setting("Asking a model again.", factory=RetrySettings)
    hedge: HedgeSettings = setting("Asking a second model when the first is slow.", factory=HedgeSettings)
    canary: PartSettings = setting("A model on trial: it answers part of the requests.", factory=PartSettings)
    shadow: PartSettings = setting(
        "A model that is asked part of the requests as well; nobody sees its answers, and no caller pays for them.",
        factory=PartSettings,
    )
    open_first: OpenFirstSettings = setting("When the local model will not do.", factory=OpenFirstSettings)
    reuse: ReuseSettings = setting("Answers from memory.", factory=ReuseSettings)
