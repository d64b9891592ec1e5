"""Addresses of pictures and documents: which ones a provider may be asked to fetch."""

from __future__ import annotations

import pytest

from interlace.errors import InvalidRequest
from interlace.gateway.media import remote_url
from tests.support.hostile import INSIDE


@pytest.mark.parametrize("url", INSIDE)
def test_no_address_leads_inside(url: str) -> None:
    """Otherwise a caller reads, through a provider that runs next door, what only servers there may read; other
    letters, dots, escapes and numbers name the same places to some client."""
    with pytest.raises(InvalidRequest):
        remote_url(url, "url")


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a%20b.png?c=d#e",
        "http://EXAMPLE.com.:8080/ä.png",
        "https://bücher.example/x.png",
        "https://a_b.example/x.png",
        "http://1.1.1.1/x.png",
        "http://[2606:4700::1111]/x.png",
        "https://corp.example/x.png",
    ],
)
def test_the_public_web_is_let_through_as_it_stands(url: str) -> None:
    """Otherwise honest pictures are refused, or a signed address is changed on its way."""
    assert remote_url(url, "url") == url
