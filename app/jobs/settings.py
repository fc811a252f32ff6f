"""Where Redis is: arq's `RedisSettings` (arq 0.28, `arq.connections`)."""

import ssl
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlparse

from redis import Redis, SSLConnection
from redis import asyncio as aioredis
from redis.asyncio.connection import SSLConnection as AsyncSSLConnection
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry
from redis.sentinel import Sentinel

MOST_CONNECTIONS = 2**31
"""arq's behaviour; redis-py 8 otherwise refuses the 101st concurrent command."""
_VERIFY_MODES = {
    None: ssl.CERT_NONE,
    "none": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}
_SSL_OPTIONS = frozenset(
    f"ssl_{name}" for name in ("keyfile", "certfile", "cert_reqs", "ca_certs", "ca_data", "check_hostname")
)
_CREDENTIALS = ("username", "password", "credential_provider")


@dataclass
class RedisSettings:
    """Connection settings; field order and defaults are arq's, the last field is redis-py's."""

    host: str | list[tuple[str, int]] = "localhost"
    port: int = 6379
    unix_socket_path: str | None = None
    database: int = 0
    username: str | None = None
    password: str | None = None
    ssl: bool = False
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    ssl_cert_reqs: str | None = "required"  # or "optional", "none"; None is "none"
    ssl_ca_certs: str | None = None
    ssl_ca_data: str | None = None
    ssl_check_hostname: bool = False
    conn_timeout: float = 1
    conn_retries: int = 5
    conn_retry_delay: float = 1
    max_connections: int | None = None
    sentinel: bool = False
    sentinel_master: str = "mymaster"
    retry_on_timeout: bool = False  # redis-py 8 always does; kept for arq's sake
    retry_on_error: list[type[Exception]] | None = None
    retry: Any = None
    credential_provider: CredentialProvider | None = None  # in place of username and password

    def __repr__(self) -> str:
        shown = {each.name: getattr(self, each.name) for each in fields(self)}
        if self.credential_provider is None:
            del shown["credential_provider"]
        if self.password is not None:
            shown["password"] = "***"  # noqa: S105 - hides it
        return f"RedisSettings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @classmethod
    def from_dsn(cls, dsn: str) -> "RedisSettings":
        """Settings from `redis://`, `rediss://` or `unix://`.

        Raises:
            RuntimeError: another scheme.
        """
        parts = urlparse(dsn)
        if parts.scheme not in {"redis", "rediss", "unix"}:
            raise RuntimeError("invalid DSN scheme")
        query = parse_qs(parts.query)
        database = int(query["db"][0]) if "db" in query else 0
        username = unquote(parts.username) if parts.username else None
        password = unquote(parts.password) if parts.password else None
        if parts.scheme == "unix":
            return cls(unix_socket_path=parts.path, database=database, username=username, password=password)
        if "db" not in query and parts.path.strip("/"):
            database = int(parts.path.strip("/"))
        return cls(
            host=parts.hostname or "localhost",
            port=parts.port or 6379,
            database=database,
            username=username,
            password=password,
            ssl=parts.scheme == "rediss",
        )


def _options(settings: RedisSettings, retry: type[Retry | AsyncRetry]) -> dict[str, Any]:
    options: dict[str, Any] = {
        "db": settings.database,
        "username": settings.username,
        "password": settings.password,
        "credential_provider": settings.credential_provider,
        "socket_connect_timeout": settings.conn_timeout,
        "retry_on_error": settings.retry_on_error or [],  # with Sentinel redis-py iterates over it
        "encoding": "utf8",
        # one more try heals a pooled connection that went stale; redis-py's own back-off takes a minute
        "retry": settings.retry or retry(NoBackoff(), 1),
    }
    if settings.ssl:
        options |= {
            "ssl": True,
            "ssl_keyfile": settings.ssl_keyfile,
            "ssl_certfile": settings.ssl_certfile,
            "ssl_cert_reqs": _VERIFY_MODES.get(settings.ssl_cert_reqs, settings.ssl_cert_reqs),
            "ssl_ca_certs": settings.ssl_ca_certs,
            "ssl_ca_data": settings.ssl_ca_data,
            "ssl_check_hostname": settings.ssl_check_hostname,
        }
    return options


def async_pool(
    settings: RedisSettings, *, socket_timeout: float | None, sends_again: bool = True
) -> aioredis.ConnectionPool:
    """A pool of async connections; nothing is connected yet.

    Without `sends_again` a command whose answer was lost is not sent once more: it may have been done.

    Raises:
        RuntimeError: `sentinel` without a list of (host, port).
    """
    options = _options(settings, AsyncRetry) | {"socket_timeout": socket_timeout}
    if not sends_again:
        options["retry"] = AsyncRetry(NoBackoff(), 0)
    limit = settings.max_connections or MOST_CONNECTIONS
    if settings.sentinel:
        sentinel = AsyncSentinel(_sentinel_hosts(settings), sentinel_kwargs=_for_sentinels(options), **options)
        pool: aioredis.ConnectionPool = sentinel.master_for(settings.sentinel_master).connection_pool
    else:
        pool = aioredis.Redis(**_place(settings), **options, max_connections=limit).connection_pool
    pool.connection_class = _telling_of_resets(pool.connection_class)
    return pool


class _TellsOfResets:
    """A connection on uvloop, which raises RuntimeError when one writes where a reset has closed the transport."""

    async def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        """As redis-py.

        Raises:
            RedisError: as redis-py; also for a connection that the other side has reset.
        """
        try:
            await super().send_packed_command(*args, **kwargs)  # type: ignore[misc]  # the class it is mixed into
        except RuntimeError as exc:
            if "handler is closed" not in str(exc):
                raise
            raise RedisConnectionError("Connection reset by peer") from exc


def _telling_of_resets(connection_class: Any) -> Any:
    return type(connection_class.__name__, (_TellsOfResets, connection_class), {})


async def close_sentinels(pool: aioredis.ConnectionPool) -> None:
    """Close what asks the sentinels for the master, which no client does by itself."""
    if isinstance(pool, SentinelConnectionPool):
        for client in pool.sentinel_manager.sentinels:
            await client.aclose()


def sync_client(settings: RedisSettings, *, socket_timeout: float | None) -> Redis:
    """A sync client for RQ's own code in threads; nothing is connected yet.

    Raises:
        RuntimeError: as `async_pool`.
    """
    options = _options(settings, Retry) | {"socket_timeout": socket_timeout}
    if settings.sentinel:
        sentinel = Sentinel(_sentinel_hosts(settings), sentinel_kwargs=_for_sentinels(options), **options)
        client: Redis = sentinel.master_for(settings.sentinel_master)
        return client
    return Redis(**_place(settings), **options)


def _place(settings: RedisSettings) -> dict[str, Any]:
    if settings.unix_socket_path:
        return {"unix_socket_path": settings.unix_socket_path}
    return {"host": settings.host, "port": settings.port}


def _for_sentinels(options: dict[str, Any]) -> dict[str, Any]:
    """As arq: database, user and password are the master's."""
    return {name: value for name, value in options.items() if name.startswith(("socket_", "ssl"))}


def _sentinel_hosts(settings: RedisSettings) -> Sequence[tuple[str, int]]:
    if isinstance(settings.host, str):
        raise RuntimeError("str provided for 'host' but 'sentinel' is true; list of sentinels expected")  # noqa: TRY004 - arq's error
    return settings.host


def settings_of(connection: Redis | aioredis.Redis | None) -> RedisSettings:
    """The settings behind a client that somebody else made, such as RQ's command line.

    Raises:
        ValueError: it connects in a way that cannot be repeated from settings.
    """
    if connection is None:
        return RedisSettings()
    pool: Any = connection.connection_pool
    _refuse_what_cannot_be_repeated(pool)
    given = pool.connection_kwargs
    settings = RedisSettings(
        host=given.get("host") or "localhost",
        port=given.get("port") or 6379,
        unix_socket_path=given.get("path"),
        database=given.get("db") or 0,
        username=given.get("username"),
        password=given.get("password"),
        ssl=issubclass(pool.connection_class, SSLConnection | AsyncSSLConnection),
        ssl_keyfile=given.get("ssl_keyfile"),
        ssl_certfile=given.get("ssl_certfile"),
        ssl_cert_reqs=_cert_reqs_of(given.get("ssl_cert_reqs", "required")),
        ssl_ca_certs=given.get("ssl_ca_certs"),
        ssl_ca_data=given.get("ssl_ca_data"),
        ssl_check_hostname=bool(given.get("ssl_check_hostname", False)),
        credential_provider=given.get("credential_provider"),
    )
    if hasattr(pool, "sentinel_manager"):
        places = [each.connection_pool.connection_kwargs for each in pool.sentinel_manager.sentinels]
        settings.host = [(place["host"], place["port"]) for place in places]
        settings.sentinel, settings.sentinel_master = True, pool.service_name
    return settings


def _cert_reqs_of(given: Any) -> Literal["none", "optional", "required"]:
    """As redis-py reads it: a word, a number of `ssl`'s, or None."""
    if given in {"optional", ssl.CERT_OPTIONAL}:
        return "optional"
    return "none" if given in {None, "none", ssl.CERT_NONE} else "required"


def _refuse_what_cannot_be_repeated(pool: Any) -> None:
    given = pool.connection_kwargs
    refused = [name for name in given if name.startswith("ssl_") and name not in _SSL_OPTIONS and given[name]]
    if given.get("redis_connect_func"):
        refused.append("redis_connect_func")
    if not pool.connection_class.__module__.startswith(("redis.", __name__)):
        refused.append(f"connection_class {pool.connection_class.__name__}")
    if hasattr(pool, "sentinel_manager"):
        if not pool.is_master:
            refused.append("a replica")
        for sentinel in pool.sentinel_manager.sentinels:
            options = sentinel.connection_pool.connection_kwargs
            refused += [f"a sentinel's {name}" for name in _CREDENTIALS if options.get(name)]
    if refused:
        raise ValueError(
            f"a worker makes connections of its own, and cannot repeat the client's {', '.join(refused)}; "
            "give it RedisSettings, or a pool that create_pool made of some"
        )
