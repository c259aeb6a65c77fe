"""Causal order and the four session guarantees, by cycles in the graph of transactions.

Adya's dependencies over the append-only lists: a transaction that saw an element depends on the
one that added it (wr), one that did not see an element precedes the one that added it (rw), and
those of one session follow each other (so). A cycle with a single rw is G-single, which is a broken
session guarantee where so is in it: a read that misses its own write, goes back, or misses what
another write that it saw had seen. As reads never see what is added later in true time, a cycle
without rw (G1c) cannot be. An element that was refused and seen by another is G1a; a part of a
group is G1b (see `atomicity`). Elements are added once and never replaced: no ww, no G0.

Source: Adya, "Weak Consistency" (1999); Jepsen's causal tests.
"""

from collections.abc import Iterable

from reunite_simulations.checkers import Observed, rejected_elements
from reunite_simulations.history import Outcome, Read, Transaction


class Causality:
    """Checked over the whole history at the end."""

    promise = "causal order"

    def during(self, world: Observed) -> Iterable[str]:
        """Nothing before the end."""
        return ()

    def at_end(self, world: Observed) -> Iterable[str]:
        """Every cycle that is not allowed."""
        rejected = rejected_elements(world)
        writers: dict[str, Transaction] = {}
        whole = [
            transaction
            for transaction in world.history.transactions
            if not world.history.comes_back_by_row(transaction)
        ]
        for transaction in whole:
            for element in transaction.appended:
                certain = transaction.own and not transaction.doubtful
                if certain and element not in rejected:
                    writers[element] = transaction
        # By sets as bits: all elements that a session, or a transaction, has in its past.
        bit = {element: 1 << place for place, element in enumerate(writers)}
        past_of_session: dict[tuple[str, int], int] = {}
        past_of_element: dict[str, int] = {}
        steps: list[Transaction | Read] = [*world.history.transactions, *world.history.reads]
        for step in sorted(steps, key=lambda each: each.at):
            if isinstance(step, Transaction) and step.outcome is not Outcome.RETURNED:
                continue
            session = (step.client, step.life)
            seen = step.read if isinstance(step, Transaction) else step.seen
            known = [element for element in seen if element in bit]
            past = past_of_session.get(session, 0)
            for element in known:
                past |= bit[element] | past_of_element.get(element, 0)
            had = 0
            for element in known:
                had |= bit[element]
            missing = past & ~had
            if missing:
                names = [element for element in bit if bit[element] & missing][:3]
                yield (
                    f"{step.client} at {step.at:.1f} s does not see {names}, which is in the past"
                    " of what it sees (G-single)"
                )
                return
            if isinstance(step, Transaction):
                for element in step.appended:
                    if element in bit:
                        past_of_element[element] = past
                        past |= bit[element]
            past_of_session[session] = past
        authors = {
            element: transaction.client for transaction in whole for element in transaction.appended
        }
        # What a file had pending that was copied, or went back, may be refused here and not there.
        among = world.twins | world.rolled_back
        alone = {e for e in rejected if e in authors and authors[e] not in among}
        for read in world.history.reads:
            aborted = {e for e in read.seen & alone if authors[e] != read.client}
            if aborted:
                yield f"{read.client} saw {sorted(aborted)[:3]}, which was refused (G1a)"
                return
