"""Postgres and Redis as child processes of this one, from binaries that come with the Python packages.

For demos, laptops and tests: no server to install. Each server is started directly (not through its
package's helper, whose lock file in a shared temporary folder shuts out a second user) and listens on a
Unix socket only, in a folder that belongs to this user.
"""

from app.embedded.postgres import EmbeddedPostgres
from app.embedded.redis import EmbeddedRedis

__all__ = ["EmbeddedPostgres", "EmbeddedRedis"]
