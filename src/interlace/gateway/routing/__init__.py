"""Routes: public names with several models behind them. Choosing is apart from asking, so that it can be explained."""

from interlace.gateway.routing.attempts import Attempts, Doing
from interlace.gateway.routing.choice import Choice, PassedOver, Step, choose
from interlace.gateway.routing.facts import Asked, Standing, asked_of, models_of, seed_of
from interlace.gateway.routing.live import AnyBreaker, FirstTokens, Live, is_the_models_fault
from interlace.gateway.routing.mapped_breakers import MappedBreakers
from interlace.gateway.routing.redis_breakers import RedisBreakers
from interlace.gateway.routing.reuse import AnyMemory, Kept, Memory, Remembered, Shelf, fits, key_of
from interlace.gateway.routing.shadow import Shadows

__all__ = [
    "AnyBreaker",
    "AnyMemory",
    "Asked",
    "Attempts",
    "Choice",
    "Doing",
    "FirstTokens",
    "Kept",
    "Live",
    "MappedBreakers",
    "Memory",
    "PassedOver",
    "RedisBreakers",
    "Remembered",
    "Shadows",
    "Shelf",
    "Standing",
    "Step",
    "asked_of",
    "choose",
    "fits",
    "is_the_models_fault",
    "key_of",
    "models_of",
    "seed_of",
]
