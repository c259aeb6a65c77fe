"""Protocol `reunite.1` is frozen: clients and relays of several ages meet. The frames are kept as
bytes beside the message that each means, written as Python writes it."""

import json
from pathlib import Path

import pytest

from reunite_transport import codec

GOLDEN = Path(__file__).parent.parent / "golden" / "frames-1.json"
CASES: list[dict[str, str]] = json.loads(GOLDEN.read_text(encoding="utf-8"))
# Types below 16 and from 64 on are the client's, 24 is both sides', the rest the relay's.
CLIENTS_TYPES = {*range(16), *range(64, 96)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["message"].partition("(")[0])
def test_a_frame_of_the_first_protocol_means_what_it_meant(case: dict[str, str]) -> None:
    frame = bytes.fromhex(case["hex"])
    # A plain frame: its first byte, msgpack's array header, and the type.
    message = codec.decode(frame, "relay" if frame[2] in CLIENTS_TYPES else "client")
    assert message is not None
    assert repr(message) == case["message"]
    assert codec.encode(message) == frame
