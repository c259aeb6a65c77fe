"""The relay as a server: its WebSockets. Owns the listening socket and what HTTP asks.

`serve` starts it, `Relay.close` ends it. For those who run it, `/health` says whether it may be
used and `/metrics` what it does; both answer until the last client has its goodbye. Until clients
sign in, a relay listens on this machine only, and what a web page could reach it with is refused:
see `_check_origin`.
"""

import ipaddress
import logging
from urllib.parse import urlsplit

from aiohttp import WSCloseCode, WSMsgType, web

from reunite.errors import ProtocolError, UsageError
from reunite_transport.messages import FRAME_BYTES_MAX, SUBPROTOCOL
from reunite_transport.relay.connection import CLOSE_SECONDS_MAX
from reunite_transport.relay.metrics import CONTENT_TYPE, Metrics
from reunite_transport.relay.service import Limits, Service, open_service
from reunite_transport.relay.store import Store

_log = logging.getLogger(__name__)


async def serve(
    store: Store,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    create_tables: bool = True,
    refill: bool = True,
    history: bool = True,
    insecure: bool = False,
    track_new: bool = False,
    limits: Limits | None = None,
) -> "Relay":
    """Start a relay for the realm in `store`; it accepts connections when this returns.

    Port 0 takes a free one. `create_tables` lets clients add tables and columns to the realm;
    with `refill` they bring back what a restored database has lost; with `history` values that
    merges overwrite are kept, and told to clients; with `track_new` tables that others make in the
    database join the realm.
    `insecure` allows a host that others can reach, where nobody has to sign in. The store stays
    the caller's, who closes it after the relay. Raises UsageError for a host or port that cannot
    be had, StoreError when the database does not answer.
    """
    if not insecure and not _is_loopback(host):
        raise UsageError(
            f"{host} can be reached from other machines, and clients of this relay neither sign in"
            " nor encrypt; listen on 127.0.0.1 behind a proxy that does both, or pass --insecure"
            " in a network that you trust"
        )
    metrics = Metrics()
    service = await open_service(
        store,
        create_tables=create_tables,
        refill=refill,
        history=history,
        limits=limits,
        metrics=metrics,
        track_new=track_new,
    )
    metrics.watch(service)
    relay = Relay(service, metrics)
    try:
        await relay._start(host, port)
    except BaseException:
        await relay.service.close()
        raise
    return relay


class Relay:
    """A running relay; made by `serve`."""

    host: str
    port: int

    def __init__(self, service: Service, metrics: Metrics) -> None:
        """`serve` makes it listen."""
        self.service = service
        self._metrics = metrics
        self._preparing = 0
        self._closing = False

    @property
    def url(self) -> str:
        """Where clients connect."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ws://{host}:{self.port}/sync"

    async def close(self) -> None:
        """Stop: take no more clients, finish the batch under way, say goodbye, stop listening.

        Load balancers are told `draining` from the start to the end of this. Harmless when
        repeated.
        """
        if self._closing:
            return
        self._closing = True
        _log.info("stopping: the batch under way is finished first")
        await self.service.close()
        await self._site.stop()
        await self._runner.cleanup()
        _log.info("stopped")

    async def _start(self, host: str, port: int) -> None:
        app = web.Application()
        app.router.add_get("/", self._connect)
        app.router.add_get("/sync", self._connect)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._show_metrics)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=CLOSE_SECONDS_MAX)
        await self._runner.setup()
        self._site = web.TCPSite(self._runner, host, port)
        try:
            await self._site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise UsageError(
                f"cannot listen on {host}:{port}: {error.strerror}; choose another --port"
            ) from error
        self.host = host
        self.port = self._runner.addresses[0][1]
        self._local_only = _is_loopback(host)
        _log.info("listening at %s", self.url, extra={"url": self.url})

    async def _health(self, request: web.Request) -> web.Response:
        """For load balancers: 200 while clients are welcome and the database answers and commits,
        else 503."""
        service = self.service
        trouble = "draining" if self._closing else service.trouble()
        return web.json_response(
            {
                "status": trouble or "ok",
                "head": service.hub.head,
                "connections": len(service.connections),
                "queue": service.flusher.queued_changesets,
                "captured_lag_seconds": service.captured_lag_seconds,
                "tables": dict(service.troubles),
            },
            status=503 if trouble else 200,
        )

    async def _show_metrics(self, request: web.Request) -> web.Response:
        """For Prometheus."""
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _connect(self, request: web.Request) -> web.StreamResponse:
        """Turn a request into a connection and serve it to its end."""
        self._check_origin(request)
        offered = request.headers.get("Sec-WebSocket-Protocol", "")
        if SUBPROTOCOL not in [each.strip() for each in offered.split(",")]:
            raise web.HTTPBadRequest(
                text=f"this is a relay: connect a WebSocket with the subprotocol {SUBPROTOCOL}\n"
            )
        open_now = len(self.service.connections) + self._preparing
        if self._closing or open_now >= self.service.limits.connections_max:
            raise web.HTTPServiceUnavailable(
                text="this relay takes no more connections\n", headers={"Retry-After": "5"}
            )
        socket = web.WebSocketResponse(
            protocols=(SUBPROTOCOL,),
            max_msg_size=FRAME_BYTES_MAX + 1,
            heartbeat=self.service.limits.heartbeat_seconds,
            # Frames are packed already, within bounds that the WebSocket's own packing lacks.
            compress=False,
            timeout=CLOSE_SECONDS_MAX,
        )
        self._preparing += 1
        try:
            await socket.prepare(request)
        except ConnectionError:
            return web.Response()  # to nobody: the client went away meanwhile
        finally:
            self._preparing -= 1
        if self._closing:
            await socket.close(code=WSCloseCode.GOING_AWAY)
        else:
            await self.service.attend(_WebSocket(request, socket))
        return socket

    def _check_origin(self, request: web.Request) -> None:
        """Refuse what a page of another site could send. Browsers name the page's origin and
        apply no other rule to WebSockets; programs send no Origin. A relay for this machine also
        refuses names of other machines, which a page may have made to point here."""
        origin = request.headers.get("Origin")
        if origin is None:
            return
        here = urlsplit(f"//{request.host}").hostname or ""
        if urlsplit(origin).netloc != request.host or (self._local_only and not _is_loopback(here)):
            raise web.HTTPForbidden(text="pages of other sites may not connect to this relay\n")


class _WebSocket:
    """A `Socket` over aiohttp's WebSocket."""

    def __init__(self, request: web.Request, socket: web.WebSocketResponse) -> None:
        self._request = request
        self._socket = socket

    async def receive(self) -> bytes | None:
        message = await self._socket.receive()
        if message.type is WSMsgType.BINARY:
            data: bytes = message.data
            return data
        if message.type is WSMsgType.TEXT:
            raise ProtocolError("frames are binary", "malformed")
        # Closed by the other side, or by itself with the code that says why.
        return None

    async def send(self, frame: bytes) -> None:
        await self._socket.send_bytes(frame)

    async def close(self, *, stopped: bool) -> None:
        code = WSCloseCode.GOING_AWAY if stopped else WSCloseCode.POLICY_VIOLATION
        await self._socket.close(code=code)

    def cut_off(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
