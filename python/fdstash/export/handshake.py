"""The server's side of the handshake, without I/O: bytes come in, bytes go out."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol

from fdstash.errors import Error
from fdstash.export.protocol import (
    CLIENT_FLAGS,
    CONTEXT_ALLOCATION,
    GREETING,
    NO_ZEROES,
    OPTION_HEADER,
    OPTION_MAGIC,
    Flag,
    Info,
    Option,
    Reply,
    pack_reply,
)

__all__ = ["Agreement", "Described", "Handshake", "HandshakeError", "Offer"]

#: Bytes of an export's name, as of every string of the protocol.
LONGEST_NAME = 4096
#: Bytes of an option that are kept; of a longer one no more than is skipped.
LONGEST_OPTION = 1 << 15
_LONGEST_SKIP = 1 << 20
#: Options in one handshake.
_MOST_OPTIONS = 1000
#: The id of base:allocation: any number does.
ALLOCATION_ID = 1


class HandshakeError(Error):
    """The client does not speak the protocol, or asks for more than it may: it is hung up on."""


class Described(NamedTuple):
    """An export as the handshake tells of it; sizes in bytes."""

    name: str
    description: str
    size: int
    flags: Flag  #: but for SEND_DF
    minimum: int  #: of requests that cost no more than they must
    preferred: int
    maximum: int  #: of one read or write
    allocation: bool  #: whether base:allocation is offered

    @property
    def read_only(self) -> bool:
        """Whether what changes bytes is refused."""
        return Flag.READ_ONLY in self.flags


class Offer(Protocol):
    """What there is to be had, at the moment of each call."""

    def find(self, name: str) -> Described | None:
        """The export of that name."""

    def names(self) -> Mapping[str, str]:
        """Names of all exports, and their descriptions."""


class Agreement(NamedTuple):
    """What client and server have agreed upon."""

    export: Described
    structured: bool
    allocation: bool


class _InvalidError(Exception):
    """The data of an option makes no sense; the text is for the client."""


class Handshake:
    """One client's; `greeting` is sent first, then what `receive` returns.

    `agreed` is set once an export was chosen: what was received beyond that is in `rest`.
    `ended` is set once the client wants no more.
    """

    greeting = GREETING

    def __init__(self, offer: Offer) -> None:
        self._offer = offer
        self._buffer = bytearray()
        self._skip = 0
        self._options = 0
        self._no_zeroes = False
        self._greeted = False
        self._structured = False
        #: The export for which base:allocation was chosen.
        self._context_of: str | None = None
        self.agreed: Agreement | None = None
        self.ended = False

    @property
    def rest(self) -> bytes:
        """Received behind the handshake."""
        return bytes(self._buffer)

    def receive(self, data: bytes) -> bytes:
        """What is to be sent now. Raises `HandshakeError`, after which nothing is."""
        self._buffer += data
        sent = bytearray()
        while not self.ended and self.agreed is None:
            answer = self._step()
            if answer is None:
                break
            sent += answer
        return bytes(sent)

    def _step(self) -> bytes | None:
        """The answer to what has come as a whole; None where more has to come."""
        if self._skip:
            part = min(self._skip, len(self._buffer))
            del self._buffer[:part]
            self._skip -= part
            return None if self._skip else b""
        if not self._greeted:
            return self._client_flags()
        if len(self._buffer) < OPTION_HEADER.size:
            return None
        magic, option, length = OPTION_HEADER.unpack_from(self._buffer)
        if magic != OPTION_MAGIC:
            raise HandshakeError("this is not an option of the NBD protocol")
        if length > LONGEST_OPTION:
            return self._too_long(option, length)
        if len(self._buffer) < OPTION_HEADER.size + length:
            return None
        data = bytes(self._buffer[OPTION_HEADER.size : OPTION_HEADER.size + length])
        del self._buffer[: OPTION_HEADER.size + length]
        return self._answer(option, data)

    def _client_flags(self) -> bytes | None:
        if len(self._buffer) < 4:
            return None
        (flags,) = struct.unpack_from(">I", self._buffer)
        if flags & ~CLIENT_FLAGS:
            raise HandshakeError(f"the client sets unknown flags: {flags:#x}")
        del self._buffer[:4]
        self._no_zeroes = bool(flags & NO_ZEROES)
        self._greeted = True
        return b""

    def _too_long(self, option: int, length: int) -> bytes:
        if length > _LONGEST_SKIP or option == Option.EXPORT_NAME:
            raise HandshakeError(f"an option of {length} bytes")
        self._count()
        del self._buffer[: OPTION_HEADER.size]
        self._skip = length
        return pack_reply(option, Reply.ERR_TOO_BIG, b"the option is too long")

    def _count(self) -> None:
        self._options += 1
        if self._options > _MOST_OPTIONS:
            raise HandshakeError(f"more than {_MOST_OPTIONS} options")

    # -- options

    def _answer(self, option: int, data: bytes) -> bytes:
        self._count()
        answers: dict[int, Callable[[int, bytes], bytes]] = {
            Option.EXPORT_NAME: self._export_name,
            Option.ABORT: self._abort,
            Option.LIST: self._list,
            Option.STARTTLS: self._start_tls,
            Option.INFO: self._info,
            Option.GO: self._info,
            Option.STRUCTURED_REPLY: self._structured_reply,
            Option.LIST_META_CONTEXT: self._meta_context,
            Option.SET_META_CONTEXT: self._meta_context,
        }
        answer = answers.get(option)
        if answer is None:
            return pack_reply(option, Reply.ERR_UNSUP, b"the server does not know this option")
        try:
            return answer(option, data)
        except _InvalidError as invalid:
            return pack_reply(option, Reply.ERR_INVALID, str(invalid).encode())

    def _export_name(self, _option: int, data: bytes) -> bytes:
        """The one option that cannot be refused."""
        try:
            name = _text(data)
        except _InvalidError as invalid:
            raise HandshakeError(str(invalid)) from None
        found = self._offer.find(name)
        if found is None:
            raise HandshakeError(f"there is no export {name!r}")
        self._agree(found)
        padding = b"" if self._no_zeroes else bytes(124)
        return struct.pack(">QH", found.size, self._flags(found)) + padding

    def _abort(self, option: int, _data: bytes) -> bytes:
        self.ended = True
        return pack_reply(option, Reply.ACK)

    def _list(self, option: int, data: bytes) -> bytes:
        if data:
            raise _InvalidError("OPT_LIST has no data")
        replies = bytearray()
        for name, description in self._offer.names().items():
            encoded = name.encode()
            text = struct.pack(">I", len(encoded)) + encoded + description.encode()
            replies += pack_reply(option, Reply.SERVER, text)
        return bytes(replies) + pack_reply(option, Reply.ACK)

    def _start_tls(self, option: int, data: bytes) -> bytes:
        if data:
            raise _InvalidError("OPT_STARTTLS has no data")
        return pack_reply(option, Reply.ERR_POLICY, b"this server has no TLS; a proxy may")

    def _structured_reply(self, option: int, data: bytes) -> bytes:
        if data:
            raise _InvalidError("OPT_STRUCTURED_REPLY has no data")
        self._structured = True
        return pack_reply(option, Reply.ACK)

    def _info(self, option: int, data: bytes) -> bytes:
        name, at = _counted(data, 0)
        if len(data) < at + 2:
            raise _InvalidError("the number of requests is missing")
        (count,) = struct.unpack_from(">H", data, at)
        if len(data) != at + 2 + 2 * count:
            raise _InvalidError("the requests are not as many as they are said to be")
        wanted = set(struct.unpack_from(f">{count}H", data, at + 2))
        found = self._offer.find(name)
        if found is None:
            return pack_reply(option, Reply.ERR_UNKNOWN, b"there is no export of this name")
        replies = b"".join(
            pack_reply(option, Reply.INFO, info) for info in self._infos(found, wanted)
        )
        if option == Option.GO:
            self._agree(found)
        return replies + pack_reply(option, Reply.ACK)

    def _infos(self, found: Described, wanted: set[int]) -> Iterator[bytes]:
        yield struct.pack(">HQH", Info.EXPORT, found.size, self._flags(found))
        if Info.NAME in wanted:
            yield struct.pack(">H", Info.NAME) + found.name.encode()
        if Info.DESCRIPTION in wanted and found.description:
            yield struct.pack(">H", Info.DESCRIPTION) + found.description.encode()
        sizes = found.minimum, found.preferred, found.maximum
        yield struct.pack(">HIII", Info.BLOCK_SIZE, *sizes)

    def _meta_context(self, option: int, data: bytes) -> bytes:
        if not self._structured:
            raise _InvalidError("structured replies were not negotiated")
        name, queries = _queries(data)
        found = self._offer.find(name)
        setting = option == Option.SET_META_CONTEXT
        if setting:
            self._context_of = None
        if found is None:
            return pack_reply(option, Reply.ERR_UNKNOWN, b"there is no export of this name")
        whole = {CONTEXT_ALLOCATION}
        matched = whole if setting else {*whole, "base:"}
        chosen = any(query in matched for query in queries) or not (setting or queries)
        replies = b""
        if chosen and found.allocation:
            number = ALLOCATION_ID if setting else 0
            text = struct.pack(">I", number) + CONTEXT_ALLOCATION.encode()
            replies = pack_reply(option, Reply.META_CONTEXT, text)
            if setting:
                self._context_of = name
        return replies + pack_reply(option, Reply.ACK)

    def _agree(self, found: Described) -> None:
        # A context that was chosen for another export is none.
        allocation = self._structured and self._context_of == found.name
        self.agreed = Agreement(found, self._structured, allocation)

    def _flags(self, found: Described) -> int:
        return found.flags | (Flag.SEND_DF if self._structured else 0)


def _text(data: bytes) -> str:
    if len(data) > LONGEST_NAME:
        raise _InvalidError(f"a string has at most {LONGEST_NAME} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise _InvalidError("a string is not UTF-8") from None
    if "\0" in text:
        raise _InvalidError("a string holds a NUL")
    return text


def _counted(data: bytes, at: int) -> tuple[str, int]:
    """A string behind its length, and where it ends."""
    if len(data) < at + 4:
        raise _InvalidError("the length of a string is missing")
    (length,) = struct.unpack_from(">I", data, at)
    if length > len(data) - at - 4:
        raise _InvalidError("a string is shorter than it is said to be")
    return _text(data[at + 4 : at + 4 + length]), at + 4 + length


def _queries(data: bytes) -> tuple[str, list[str]]:
    """The name and the queries of the options that are about metadata contexts."""
    name, at = _counted(data, 0)
    if len(data) < at + 4:
        raise _InvalidError("the number of queries is missing")
    (count,) = struct.unpack_from(">I", data, at)
    at += 4
    if count > (len(data) - at) // 4:
        raise _InvalidError("the queries are not as many as they are said to be")
    queries = []
    for _ in range(count):
        query, at = _counted(data, at)
        queries.append(query)
    if at != len(data):
        raise _InvalidError("there is more than the queries")
    return name, queries
