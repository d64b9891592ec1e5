"""Loopback servers in the place of OpenAI, Azure, Anthropic, Bedrock and Vertex AI: for pages that readers follow with
real keys. What a test changes of such a page is the providers' addresses and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.providers.servers import anthropic, bedrock, openai, vertex


@dataclass(frozen=True)
class StandIns:
    """The servers, running. `environ` are the readers' keys."""

    openai_url: str
    anthropic_url: str
    bedrock_url: str
    vertex_url: str  # with its version
    environ: dict[str, str]

    def readdressed(self, text: str) -> str:
        """The same configuration, with providers here."""
        text = text.replace("https://api.openai.com/v1", f"{self.openai_url}/v1")
        text = text.replace("https://my-resource.openai.azure.com", self.openai_url)
        urls = {"anthropic": self.anthropic_url, "bedrock": self.bedrock_url, "vertex": self.vertex_url}
        for engine, url in urls.items():
            text = text.replace(f"engine: {engine}\n", f"engine: {engine}\n    base_url: {url}\n")
        return text

    def named(self, text: str) -> str:
        """What a command printed, with the providers' own addresses again."""
        real = {
            f"{self.openai_url}/v1": "https://api.openai.com/v1",
            self.openai_url: "https://my-resource.openai.azure.com",
            self.anthropic_url: "https://api.anthropic.com",
            self.bedrock_url: "https://bedrock-runtime.eu-central-1.amazonaws.com",
            self.vertex_url: "https://aiplatform.googleapis.com/v1beta1",
        }
        for here, there in real.items():
            text = text.replace(here, there)
        return text


@contextmanager
def standing_in(folder: Path) -> Iterator[StandIns]:
    """Start them; Google's file of a service account is written into the folder."""
    with (
        openai.running_openai() as one,
        anthropic.running_anthropic() as two,
        bedrock.running_bedrock() as three,
        vertex.running_vertex() as four,
    ):
        for server in (one, two, three, four):
            server.sensible = True  # type: ignore[attr-defined]
        account = folder / "google.json"
        account.write_text(json.dumps(four.account()))
        yield StandIns(
            one.url,
            two.url,
            three.url,
            f"{four.url}/v1beta1",
            {
                "OPENAI_API_KEY": openai.KEY,
                "AZURE_OPENAI_API_KEY": openai.AZURE_KEY,
                "ANTHROPIC_API_KEY": anthropic.KEY,
                "AWS_ACCESS_KEY_ID": bedrock.ACCESS,
                "AWS_SECRET_ACCESS_KEY": bedrock.SECRET,
                "GOOGLE_APPLICATION_CREDENTIALS": str(account),
            },
        )
