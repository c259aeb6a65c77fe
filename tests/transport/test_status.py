"""How sync says that it stands: the words, the numbers, and the stream."""

import asyncio
from dataclasses import replace

import pytest

from reunite import SyncError, Watch
from reunite_transport import Progress, SyncStatus
from reunite_transport.status import Statuses
from reunite_transport.wakeup import Wakeup

OFFLINE = SyncStatus("offline", last_error=SyncError("no connection\nto x", "offline"))


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (SyncStatus(), "connecting"),
        (SyncStatus("loading", progress=Progress(43, 100)), "loading 43 %"),
        (SyncStatus("loading", progress=Progress(43, 0)), "loading"),
        (SyncStatus("live", queued=2), "live, 2 queued"),
        (replace(OFFLINE, retry_in=2.1), "offline: no connection to x, next try in 3 s"),
        (SyncStatus("disconnected", queued=1), "disconnected, 1 queued"),
        (SyncStatus("stopped", last_error=SyncError("why", "realm")), "stopped: why"),
        (SyncStatus("live", last_error=SyncError("rejected", "constraint")), "live"),
    ],
)
def test_a_status_is_one_line(status: SyncStatus, said: str) -> None:
    assert str(status) == said
    assert repr(status) == f"<SyncStatus {said}>"


@pytest.mark.parametrize(
    ("rows", "total", "percent"), [(0, 7, 0), (6, 7, 85), (7, 7, 100), (3, 0, None)]
)
def test_percent_is_a_whole_number_where_the_amount_is_known(
    rows: int, total: int, percent: int | None
) -> None:
    assert SyncStatus("loading", progress=Progress(rows, total)).percent == percent
    assert SyncStatus("live", progress=Progress(rows, total)).percent is None


class Stage:
    """A status that is set by hand."""

    def __init__(self) -> None:
        self.now = SyncStatus()
        self.wakeup = Wakeup()
        self.over = False

    def become(self, status: SyncStatus) -> None:
        self.now = status
        self.wakeup.ring()

    def watch(self) -> Watch[SyncStatus]:
        statuses = Statuses(lambda: self.now, self.wakeup, lambda: self.over)
        return Watch(statuses, shown="the stage")

    async def listen(self, into: list[str]) -> None:
        async for status in self.watch():
            into.append(str(status))


async def turns() -> None:
    """Let all that can go on go on."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_each_listener_gets_each_change_once_and_the_last_at_the_end() -> None:
    async def scenario() -> None:
        stage, one, two = Stage(), list[str](), list[str]()
        first = asyncio.create_task(stage.listen(one))
        await turns()
        stage.become(SyncStatus("live"))
        await turns()
        second = asyncio.create_task(stage.listen(two))
        await turns()
        for working in (True, False, True):
            stage.become(SyncStatus("live", working=working))
            await turns()
        stage.over = True
        stage.become(SyncStatus("disconnected"))
        await asyncio.gather(first, second)
        assert one == ["connecting", "live", "disconnected"]
        assert two == ["live", "disconnected"]

    asyncio.run(scenario())


def test_who_is_slow_gets_the_latest() -> None:
    async def scenario() -> None:
        stage = Stage()
        stream = stage.watch()
        assert str(await anext(stream)) == "connecting"
        for queued in range(5):
            stage.become(SyncStatus("live", queued=queued))
            await turns()
        assert str(await anext(stream)) == "live, 4 queued"

    asyncio.run(scenario())


def test_who_gives_up_waiting_for_a_status_is_told_it_the_next_time() -> None:
    async def scenario() -> None:
        stage = Stage()
        stream = stage.watch()
        assert str(await anext(stream)) == "connecting"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.01)
        waiting = asyncio.ensure_future(anext(stream))
        await turns()
        # It is there, and who waits for it is cancelled before it has gone on.
        stage.become(SyncStatus("live"))
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert str(await anext(stream)) == "live"
        stage.over = True
        stage.wakeup.ring()
        for _ in range(2):
            with pytest.raises(StopAsyncIteration):
                await asyncio.wait_for(anext(stream), 1)

    asyncio.run(scenario())


def test_a_stream_of_statuses_is_closed_while_somebody_waits() -> None:
    async def scenario() -> None:
        stage = Stage()
        async with stage.watch() as stream:
            await anext(stream)
            waiting = asyncio.ensure_future(anext(stream))
            await turns()
        with pytest.raises(StopAsyncIteration):
            await waiting
        assert repr(stream) == "Watch('the stage', closed)"

    asyncio.run(scenario())
