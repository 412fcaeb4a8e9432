"""The keys in memory: whose key a request has, and whether the key may do what it asks for.

A key is verified against its Argon2 hash once, in a thread. From then on its SHA-256 is known, and
a request costs microseconds. A wrong key costs no more: its id is unknown, or the right SHA-256 of
that id is known. Only wrong keys with the id of a key that nobody has used since the start need the
hash. For each such id, these take at most a tenth of one processor's time.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
import time
from pathlib import Path

from argon2.exceptions import VerifyMismatchError

from lewm_serve.access.file_watch import FileWatch
from lewm_serve.access.keys_file import (
    HASHER,
    KeyEntry,
    KeysFileError,
    Role,
    key_id,
    read_keys,
)
from lewm_serve.errors import Forbidden, RateLimited, Unauthenticated, UnknownRoute, shorten
from lewm_serve.observability.logging import log

INFER: frozenset[Role] = frozenset({"infer"})
READ: frozenset[Role] = frozenset({"read"})
ADMIN: frozenset[Role] = frozenset({"admin"})
"""What paths and methods need; `|` joins roles of which any is enough."""

WRONG_KEY_SHARE = 0.1
"""The share of a processor's time that wrong keys of one id may take."""

CONCURRENT_RETRY_AFTER_S = 0.1

SCHEMES = ("bearer", "api-key")

MISSING = "expected a key: Authorization: Bearer KEY"
WRONG = "the key is wrong or has been revoked"


def key_in_header(authorization: str | None) -> str | None:
    """The key in the value of ``Authorization``: ``Bearer KEY`` or ``Api-Key KEY``."""
    scheme, _, key = (authorization or "").strip().partition(" ")
    return key.strip() if scheme.lower() in SCHEMES else None


class Key:
    """One key: its entry in the file, and its requests.

    Attributes:
        entry: the line of the file.
        digest: the SHA-256 of the key, once it has been verified.
        in_progress: its requests that are being answered.
    """

    def __init__(self, entry: KeyEntry) -> None:
        self.digest: bytes | None = None
        self.in_progress = 0
        self._verifying = asyncio.Lock()
        self._verify_from = -math.inf
        self.set_entry(entry)
        self._allowed = self._burst
        self._allowed_at = time.monotonic()

    def set_entry(self, entry: KeyEntry) -> None:
        """Take the roles and limits of a line with the same key."""
        self.entry = entry
        self._roles = frozenset(entry.roles)
        self._burst = max(1.0, entry.rate_per_s or 0.0)

    @property
    def name(self) -> str:
        """What logs call the key."""
        return self.entry.name

    async def verify(self, key: str, digest: bytes) -> None:
        """Check a key that has this one's id.

        Raises:
            Unauthenticated: it is wrong.
            RateLimited: too many wrong keys came before it.
        """
        if self.digest is None:
            async with self._verifying:
                if self.digest is None:  # nobody else has verified it meanwhile
                    await self._verify_hash(key, digest)
        if self.digest is None or not hmac.compare_digest(self.digest, digest):
            raise Unauthenticated(WRONG)

    async def _verify_hash(self, key: str, digest: bytes) -> None:
        started = time.monotonic()
        if started < self._verify_from:
            raise RateLimited(self._verify_from - started, "too many wrong keys like this one came")
        try:
            await asyncio.to_thread(HASHER.verify, self.entry.hash, key)
        except VerifyMismatchError:
            ended = time.monotonic()
            self._verify_from = ended + (ended - started) * (1 / WRONG_KEY_SHARE - 1)
        else:
            self.digest = digest

    def check_roles(self, roles: frozenset[Role]) -> None:
        """Check that the key has one of the roles.

        Raises:
            Forbidden: it has none.
        """
        if not roles & self._roles:
            needed, has = " or ".join(sorted(roles)), ", ".join(sorted(self._roles))
            raise Forbidden(f"the key {self.name} has the roles {has}, expected {needed}")

    def start(self) -> None:
        """Count a request as in progress. The caller must call `finish` when it is answered.

        Raises:
            RateLimited: the key has too many requests, per second or at once.
        """
        self._check_limits()
        self.in_progress += 1

    def finish(self) -> None:
        """The request is answered."""
        self.in_progress -= 1

    def _check_limits(self) -> None:
        most, rate = self.entry.max_concurrent, self.entry.rate_per_s
        if most is not None and self.in_progress >= most:
            detail = f"the key {self.name} has {self.in_progress} requests in progress, at most"
            raise RateLimited(CONCURRENT_RETRY_AFTER_S, f"{detail} {most} are allowed")
        if rate is not None:
            now = time.monotonic()
            self._allowed = min(self._burst, self._allowed + rate * (now - self._allowed_at))
            self._allowed_at = now
            if self._allowed < 1:
                detail = f"the key {self.name} may send {rate:g} requests per second"
                raise RateLimited((1 - self._allowed) / rate, detail)
            self._allowed -= 1


def client_of(key: Key) -> str:
    """The name of the client that shares the engine with others. No address looks like this."""
    return f"key {key.name}"


class Keys:
    """The keys of a file, which is read again when it has changed. Used from the event loop.

    Raises:
        KeysFileError: the file cannot be used. Later, a file that cannot be used changes nothing,
            and the log says so.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._watch = FileWatch(path)
        self._keys: dict[str, Key] = {}
        self._take(read_keys(path))

    def __len__(self) -> int:
        return len(self._keys)

    async def start(self, presented: str | None, roles: frozenset[Role] | None, route: str) -> Key:
        """Start a request with the key that it presents.

        Args, Raises: as of `find`, and RateLimited if the key has too many requests.

        Returns:
            The key. The caller must call its `finish` when the request is answered.
        """
        key = await self.find(presented, roles, route)
        key.start()
        return key

    async def find(self, presented: str | None, roles: frozenset[Role] | None, route: str) -> Key:
        """The key that a request presents.

        Args:
            presented: the text that may be a key.
            roles: one of these is needed. None: there is no such route.
            route: the path or method.

        Raises:
            Unauthenticated: there is no key, or a wrong one.
            Forbidden: the key has none of the roles.
            RateLimited: too many wrong keys of its id came.
            UnknownRoute: there is no such route.
        """
        self._read_if_changed()
        if presented is None:
            raise Unauthenticated(MISSING)
        identity = key_id(presented)
        key = None if identity is None else self._keys.get(identity)
        if key is None:
            raise Unauthenticated(WRONG)
        await key.verify(presented, hashlib.sha256(presented.encode()).digest())
        if roles is None:
            raise UnknownRoute(f"there is no {shorten(route)}")
        key.check_roles(roles)
        return key

    def _read_if_changed(self) -> None:
        if not self._watch.has_changed():
            return
        try:
            self._take(read_keys(self._path))
        except KeysFileError as error:
            log.error("the keys file cannot be used, the keys stay as they were", error=str(error))
        else:
            log.info("keys read", keys=len(self._keys))

    def _take(self, entries: list[KeyEntry]) -> None:
        """Take the entries. A key that stays the same keeps its requests and its verification."""
        keys: dict[str, Key] = {}
        for entry in entries:
            known = self._keys.get(entry.id)
            if known is not None and known.entry.hash == entry.hash:
                known.set_entry(entry)
                keys[entry.id] = known
            else:
                keys[entry.id] = Key(entry)
        self._keys = keys
