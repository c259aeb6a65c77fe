"""reunite_transport: how replicas meet. The client's `Sync`, the relay, and their protocol."""

from reunite_transport.client_session import GaveUp
from reunite_transport.sync import Progress, Sync, SyncStatus

__all__ = ["GaveUp", "Progress", "Sync", "SyncStatus"]
