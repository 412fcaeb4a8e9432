"""Which replica a robot's requests go to."""

import hashlib
from collections.abc import Iterable


def order_for(robot: str, replica_ids: Iterable[str]) -> list[str]:
    """The order in which replicas are asked for a robot."""

    def weight(replica_id: str) -> bytes:
        return hashlib.blake2b(f"{robot}\n{replica_id}".encode(), digest_size=8).digest()

    return sorted(replica_ids, key=weight)
