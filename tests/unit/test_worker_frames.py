"""Frames between an HTTP worker and the main process."""

import asyncio
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from resnet_service.server.workers.frames import Frame, FrameChannel, Kind

FRAMES = st.builds(
    Frame,
    kind=st.sampled_from(list(Kind)),
    slot=st.integers(0, 2**16 - 1),
    token=st.integers(0, 2**32 - 1),
    reservation=st.integers(0, 2**32 - 1),
    number=st.integers(0, 2**32 - 1),
    a=st.floats(allow_nan=False),
    b=st.floats(allow_nan=False),
    c=st.floats(allow_nan=False),
    payload=st.binary(max_size=200),
    lane=st.integers(0, 255),
)


class RecordingTransport(asyncio.Transport):
    """Keeps what is written, one item for each write."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.has_written = asyncio.Event()
        self.is_aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))
        self.has_written.set()

    def abort(self) -> None:
        self.is_aborted = True


def sender() -> tuple[FrameChannel, RecordingTransport]:
    channel, transport = FrameChannel(lambda _: None, lambda: None), RecordingTransport()
    channel.connection_made(transport)
    return channel, transport


def receiver() -> tuple[FrameChannel, RecordingTransport, list[Frame]]:
    received: list[Frame] = []
    channel, transport = FrameChannel(received.append, lambda: None), RecordingTransport()
    channel.connection_made(transport)
    return channel, transport, received


@given(st.lists(FRAMES, min_size=1, max_size=5), st.lists(st.integers(0, 600), max_size=6))
def test_frames_arrive_unchanged_however_the_stream_is_divided(frames: list[Frame], cuts: list[int]) -> None:
    """All frames of one iteration of the event loop leave in one write, and arrive in order."""

    async def run() -> None:
        channel, transport = sender()
        for frame in frames:
            channel.send(frame)
        await transport.has_written.wait()
        [data] = transport.written
        channel, _, received = receiver()
        for start, end in pairwise(sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})):
            channel.data_received(data[start:end])
        assert received == frames

    asyncio.run(run())


def test_frame_that_is_not_urgent_leaves_with_the_next_one_and_before_it() -> None:
    """A worker need not wake the main process to release a reservation."""

    async def run() -> None:
        channel, transport = sender()
        channel.send(Frame(Kind.RELEASE, reservation=1), is_urgent=False)
        await asyncio.sleep(0)
        assert transport.written == []
        channel.send(Frame(Kind.START, token=2))
        await transport.has_written.wait()
        [data] = transport.written
        channel, _, received = receiver()
        channel.data_received(data)
        assert [frame.kind for frame in received] == [Kind.RELEASE, Kind.START]

    asyncio.run(run())


def test_frame_that_is_not_urgent_leaves_by_itself() -> None:
    """Nothing waits for ever."""

    async def run() -> None:
        channel, transport = sender()
        channel.send(Frame(Kind.RELEASE, reservation=7), is_urgent=False)
        async with asyncio.timeout(10):
            await transport.has_written.wait()

    asyncio.run(run())


def test_damaged_stream_closes_the_channel() -> None:
    """A length that no frame has ends the connection instead of collecting gigabytes."""

    async def run() -> None:
        channel, transport, received = receiver()
        channel.data_received(b"\xff" * 100)
        assert transport.is_aborted
        assert received == []

    asyncio.run(run())
