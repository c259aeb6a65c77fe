"""The client's WebSocket to a relay. Owns what is aiohttp's, and what to say when it fails."""

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import aiohttp

from reunite.errors import SyncError
from reunite_transport.messages import FRAME_BYTES_MAX, SUBPROTOCOL

CONNECT_SECONDS: Final = 10.0
# A relay that does not shake hands on the end is left without.
CLOSE_SECONDS: Final = 2.0
# A relay that has not answered a heartbeat for this long is taken for gone.
HEARTBEAT_SECONDS: Final = 15.0


@asynccontextmanager
async def open_websocket(url: str) -> AsyncIterator["WebSocket"]:
    """A WebSocket to a relay, for as long as the block lasts. Raises SyncError `offline` when there
    is no relay to reach, `version` for one of another protocol."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                opened = await http.ws_connect(
                    url,
                    protocols=(SUBPROTOCOL,),
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_SECONDS),  # pyright: ignore
                    max_msg_size=FRAME_BYTES_MAX + (1 << 16),
                    heartbeat=HEARTBEAT_SECONDS,
                    compress=0,
                )
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise SyncError(f"no connection to {url}: {_why_not(error)}", "offline") from error
        try:
            if opened.protocol != SUBPROTOCOL:
                raise SyncError(f"{url} is not a reunite relay of protocol 1", "version")
            yield WebSocket(opened)
        finally:
            await opened.close()


class WebSocket:
    """A `Socket` over aiohttp's WebSocket."""

    def __init__(self, opened: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = opened

    async def receive(self) -> bytes | None:
        """The next frame; None at the end."""
        message = await self._socket.receive()
        return message.data if message.type is aiohttp.WSMsgType.BINARY else None

    async def send(self, frame: bytes) -> None:
        """Write one frame. Raises ConnectionError when the connection is lost."""
        try:
            await self._socket.send_bytes(frame)
        except aiohttp.ClientError as error:
            raise ConnectionResetError(str(error)) from error


def _why_not(error: Exception) -> str:
    """Why there is no connection, in the few words that a user needs of a network's error."""
    if isinstance(error, aiohttp.WSServerHandshakeError):
        hint = " (is it a relay's address?)" if error.status < 500 else ""
        return f"it answered with HTTP status {error.status}{hint}"
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, TimeoutError):
        return "no answer"
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused (is the relay running?)"
    if isinstance(cause, socket.gaierror):
        return f"{str(cause.strerror).lower()} (is the address right?)"
    if isinstance(cause, OSError) and cause.errno and not isinstance(cause, ssl.SSLError):
        return os.strerror(cause.errno).lower()
    return str(cause) or type(cause).__name__
