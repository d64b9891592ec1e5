"""Where tokens come from: one `Engine` protocol, the local engine behind its host, and engines on other servers."""

from interlace.engines.host import HostedEngine, RestartPolicy
from interlace.engines.remote import RemoteEngine, usual_of
from interlace.engines.types import (
    Capabilities,
    Delta,
    Embeddings,
    EmbedRequest,
    Engine,
    Event,
    GenerateRequest,
    Health,
    Message,
    OutputRule,
    Sampling,
    Started,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolCallDelta,
    TopLogprob,
    Usage,
)

__all__ = [
    "Capabilities",
    "Delta",
    "EmbedRequest",
    "Embeddings",
    "Engine",
    "Event",
    "GenerateRequest",
    "Health",
    "HostedEngine",
    "Message",
    "OutputRule",
    "RemoteEngine",
    "RestartPolicy",
    "Sampling",
    "Started",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "TopLogprob",
    "Usage",
    "usual_of",
]
