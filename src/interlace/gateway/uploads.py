"""Uploaded files that messages name by their ids: their content takes the ids' place before guards and engines look.

Only files of the caller's own project are there. What a file is, its first bytes say, whatever its name.
"""

from __future__ import annotations

import asyncio
import base64

import msgspec

from interlace.deposits import Deposits
from interlace.engines.types import FilePart, GenerateRequest, ImagePart, Message, Part
from interlace.errors import InvalidRequest, NotFound, PayloadTooLarge
from interlace.gateway.calls import Ask

MOST_BYTES = 32 << 20  # of all uploaded files that one request names
PURPOSES = frozenset({"user_data", "vision", "assistants"})
"""Files that may be read by models; those for batches and the like are no part of a conversation."""

_BEGINNINGS = (
    (b"%PDF-", "application/pdf"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)


def names_uploads(ask: Ask) -> bool:
    """Whether any part of the ask is an uploaded file."""
    return any(
        not isinstance(message.content, str) and any(map(_id_of, message.content))
        for request in ask.generate
        for message in request.messages or ()
    )


async def with_uploads(ask: Ask, project_id: str, deposits: Deposits) -> Ask:
    """The ask with the content of its uploaded files in it. Raises `NotFound` for a file that the project does not
    have, `InvalidRequest` for one that cannot stand where it is named, and `PayloadTooLarge`."""
    reading = _Reading(project_id, deposits)
    return msgspec.structs.replace(
        ask, generate=await asyncio.to_thread(lambda: tuple(map(reading.request, ask.generate)))
    )


class _Reading:
    """Reads the files of one ask, beside the event loop."""

    def __init__(self, project_id: str, deposits: Deposits) -> None:
        self._project_id = project_id
        self._deposits = deposits
        self._left = MOST_BYTES

    def request(self, request: GenerateRequest) -> GenerateRequest:
        if request.messages is None:
            return request
        return msgspec.structs.replace(request, messages=tuple(map(self._message, request.messages)))

    def _message(self, message: Message) -> Message:
        if isinstance(message.content, str):
            return message
        return msgspec.structs.replace(message, content=tuple(map(self._part, message.content)))

    def _part(self, part: Part) -> Part:
        id = _id_of(part)
        if not id or not isinstance(part, FilePart | ImagePart):
            return part
        name, content = self._read(id)
        media_type = _media_type(content)
        if isinstance(part, ImagePart):
            if not media_type.startswith("image/"):
                raise InvalidRequest(f"The file {id} is no picture: name it as a file.", param="file_id")
            data = base64.b64encode(content).decode()
            return msgspec.structs.replace(part, uploaded="", data=data, media_type=media_type)
        if media_type.startswith("image/"):
            raise InvalidRequest(f"The file {id} is a picture: name it as an image.", param="file_id")
        name = part.name or name
        if media_type == "application/pdf":
            data = base64.b64encode(content).decode()
            return msgspec.structs.replace(part, uploaded="", data=data, media_type=media_type, name=name)
        try:
            text = content.decode()
        except UnicodeDecodeError:
            raise InvalidRequest(
                f"The file {id} is neither a PDF, nor a picture, nor UTF-8 text.", param="file_id"
            ) from None
        return msgspec.structs.replace(part, uploaded="", text=text, media_type=media_type, name=name)

    def _read(self, id: str) -> tuple[str, bytes]:
        try:
            file, opened = self._deposits.files.open(self._project_id, id)
        except NotFound as error:
            raise NotFound(error.message, param="file_id", code="file_not_found") from None
        with opened:
            if file.purpose not in PURPOSES:
                raise InvalidRequest(
                    f"The file {id} was uploaded for {file.purpose!r}. Upload it again for 'user_data' or 'vision'.",
                    param="file_id",
                )
            self._left -= file.bytes
            if self._left < 0:
                raise PayloadTooLarge(f"The uploaded files of one request may have {MOST_BYTES} bytes at most.")
            return file.filename, opened.read()


def _id_of(part: Part) -> str:
    return part.uploaded if isinstance(part, FilePart | ImagePart) else ""


def _media_type(content: bytes) -> str:
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for begin, kind in _BEGINNINGS if content.startswith(begin)), "text/plain")
