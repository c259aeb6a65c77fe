"""reunite_transport: how replicas meet. The client's `Sync`, the relay, and their protocol."""

# As in `typing`, which takes time to import: the program `reunite` begins here, too, and Ctrl-C is
# not heeded yet.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from reunite_transport.blocking import BlockingSync
    from reunite_transport.client_session import GaveUp
    from reunite_transport.status import Progress, SyncStatus
    from reunite_transport.sync import Sync

__all__ = ["BlockingSync", "GaveUp", "Progress", "Sync", "SyncStatus"]


def __getattr__(name: str) -> object:
    # Imported when first asked for: most commands of the program need no network client.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from reunite_transport import blocking, client_session, sync

    owners = {"BlockingSync": blocking, "GaveUp": client_session}
    return getattr(owners.get(name, sync), name)
