"""Pictures and documents in a request: `data:` URLs are checked and bounded, addresses are passed on, never fetched.

An address is for the provider to fetch, from where it stands; one that points into somebody's own network (a loopback
or private address, a name that only resolves inside) is refused, because a server behind this gateway would follow it.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from urllib.parse import urlsplit

from interlace.engines.types import FilePart
from interlace.errors import InvalidRequest

IMAGE_TYPES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
FILE_TYPES = frozenset({"application/pdf", "text/plain", "text/markdown", "text/csv", "text/html", "application/json"})

MOST_URL_CHARACTERS = 2048
MOST_NAME_CHARACTERS = 255
_DOTS = {".", ".."}
_DATA_URL = re.compile(r"data:([a-z]+/[a-z0-9.+-]+)((?:;[a-z-]+=[\w.+-]+)*);base64,", re.IGNORECASE)
_FILE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HOST = re.compile(r"[a-z0-9_.-]+")
_IPV4_INSIDE = tuple(
    map(ipaddress.IPv6Network, ("::/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16"))
)
_SPECIAL = ipaddress.IPv4Network("192.0.0.0/24")
_INSIDE = (
    *(".localhost", ".localdomain", ".local", ".internal", ".intranet", ".lan", ".corp", ".home"),
    *(".home.arpa", ".svc"),
)


def data_url(url: str, param: str, types: frozenset[str]) -> tuple[str, str]:
    """Media type and base64 of a `data:` URL. Raises `InvalidRequest` unless the type is one of `types` and the data
    are base64."""
    head = _DATA_URL.match(url[:200])
    if head is None:
        raise InvalidRequest(
            "Expected a data URL such as data:image/png;base64,..., with the type in it.",
            param=param,
            code="invalid_url",
        )
    media_type = head[1].lower().replace("image/jpg", "image/jpeg")
    if media_type not in types:
        known = ", ".join(sorted(types))
        raise InvalidRequest(f"The type {media_type} is not known here; use one of {known}.", param=param)
    return media_type, base64_text(url[head.end() :], param)


def document(url: str, param: str, *, name: str = "", cache: str = "") -> FilePart:
    """The document in a `data:` URL; one that is text as text, so that guards, and models that read only text, can read
    it. Raises `InvalidRequest`."""
    media_type, data = data_url(url, param, FILE_TYPES)
    if media_type == "application/pdf":
        return FilePart(data, media_type, name=name, cache=cache)
    try:
        text = base64.b64decode(data).decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"A file of type {media_type} must be UTF-8.", param=param) from None
    return FilePart(media_type=media_type, text=text, name=name, cache=cache)


def base64_text(data: str, param: str) -> str:
    """The same text, once it is known to be base64 of something."""
    try:
        if base64.b64decode(data, validate=True):
            return data
    except (binascii.Error, ValueError):
        pass
    raise InvalidRequest("The data are not base64. Encode them again, without line breaks.", param=param)


def file_name(name: str, param: str) -> str:
    """The same name, once it is known to be one and no path; raises `InvalidRequest`."""
    if len(name) > MOST_NAME_CHARACTERS or (name and not name.isprintable()) or set(name) & set("/\\") or name in _DOTS:
        raise InvalidRequest(
            f"Expected a file's name: at most {MOST_NAME_CHARACTERS} characters, without / and \\.",
            param=param,
            code="invalid_value",
        )
    return name


def file_id(id: str, param: str) -> str:
    """The same id, once it looks like one of an uploaded file; raises `InvalidRequest`."""
    if not _FILE_ID.fullmatch(id):
        raise InvalidRequest("Expected the id of an uploaded file, such as file-abc123.", param=param)
    return id


def remote_url(url: str, param: str) -> str:
    """The same address, once it is known to lead to the public web; raises `InvalidRequest`."""
    try:
        split = urlsplit(url)
        host, scheme, user = split.hostname or "", split.scheme.lower(), split.username
        _ = split.port
    except ValueError:
        host = scheme = ""
        user = None
    if scheme not in {"http", "https"} or not host or len(url) > MOST_URL_CHARACTERS or not url.isprintable():
        raise InvalidRequest("Expected an http(s) address or a data URL.", param=param, code="invalid_url")
    if user is not None or not _public(host):
        raise InvalidRequest(
            "This address does not lead to the public web. Send the content itself as a data URL.",
            param=param,
            code="invalid_url",
        )
    return url


def _public(host: str) -> bool:
    """Whether a host, as it stands in an address, is out in the world for whoever reads it in the usual ways."""
    try:
        return _global(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        name = host.encode("idna").decode().lower().rstrip(".")  # of other scripts' letters and dots: as clients do
    except UnicodeError:
        return False
    # Letters only that names have: others make one client see another name, as %31, which is 1, and \\, which is /.
    if not _HOST.fullmatch(name) or f".{name}".endswith(_INSIDE):
        return False
    try:
        return _global(ipaddress.ip_address(name))
    except ValueError:
        pass
    # A name has a dot and does not end in a number: 127.1, 2130706433 and 0x7f.1 are addresses to many resolvers.
    last = name.rpartition(".")[2]
    return "." in name and not last.isdigit() and not last.startswith("0x")


def _global(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether it is one of the whole net's. One of IPv6 that stands for one of IPv4 never has to be written so."""
    if isinstance(address, ipaddress.IPv6Address) and any(address in net for net in _IPV4_INSIDE):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved and address not in _SPECIAL
