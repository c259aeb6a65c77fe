"""Whether a client's pending changesets fit what the relay accepted from it."""

from collections.abc import Sequence

from reunite_transport.messages import Verdict


def compared(
    acknowledged: int,
    last: int,
    nonces: Sequence[bytes],
    accepted: Sequence[tuple[int, bytes, int]],
) -> tuple[Verdict, tuple[tuple[int, int], ...]]:
    """The verdict, and (number, seq) of the pending changesets that are in.

    `nonces` are those of the client's pending changesets from `acknowledged` + 1 on, `accepted` the
    (number, nonce, seq) that the relay has above `acknowledged`, `last` the highest it accepted.
    A file that was copied has twins under one replica id: what the relay has then differs from
    what this one can have sent. Of a fork only what it sent itself is in, by its nonce.
    """
    nonce_by_number = dict(enumerate(nonces, acknowledged + 1))
    if last - acknowledged == len(accepted) and all(
        nonce_by_number.get(number) == nonce for number, nonce, _ in accepted
    ):
        return Verdict.CONTINUE, tuple((number, seq) for number, _, seq in accepted)
    seq_by_nonce = {nonce: seq for _, nonce, seq in accepted}
    known = (
        (number, seq_by_nonce[nonce])
        for number, nonce in nonce_by_number.items()
        if nonce in seq_by_nonce
    )
    return Verdict.FORK, tuple(known)
