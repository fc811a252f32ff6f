"""Prometheus metrics of one API process, in a registry of the app's own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from app.db import Connection

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """What /metrics shows."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Histogram(
            "sluice_http_request_seconds",
            "Time to answer, by route template, method and status",
            ("method", "route", "status"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.uploaded_bytes = Counter("sluice_uploaded_bytes", "Bytes of files accepted", registry=self._registry)
        self.uploaded_files = Counter("sluice_uploaded_files", "Files accepted", registry=self._registry)
        self._ingestions = Gauge(
            "sluice_ingestions", "Ingestions that are not settled, by state", ("state",), registry=self._registry
        )
        self._oldest = Gauge(
            "sluice_oldest_due_ingestion_seconds",
            "How long the oldest due ingestion has been waiting",
            registry=self._registry,
        )
        self._queue = Gauge(
            "sluice_queue_available", "1 while Redis answers, 0 while work goes on without", registry=self._registry
        )

    def note_uploads(self, *, files: int, size_bytes: int) -> None:
        """Count accepted uploads."""
        self.uploaded_files.inc(files)
        self.uploaded_bytes.inc(size_bytes)

    async def scrape(self, conn: Connection, *, queue_is_available: bool) -> bytes:
        """The metrics now, as Prometheus reads them; counting settled ingestions would mean reading them all."""
        row = await conn.fetchrow(
            """
            SELECT (SELECT count(*) FROM ingestions WHERE state = 'queued') AS queued,
                   (SELECT count(*) FROM ingestions WHERE state = 'running') AS running,
                   (SELECT coalesce(extract(epoch FROM now() - min(next_run_at)), 0)
                    FROM ingestions WHERE state = 'queued' AND next_run_at <= now()) AS oldest
            """
        )
        if row is not None:
            self._ingestions.labels("queued").set(row["queued"])
            self._ingestions.labels("running").set(row["running"])
            self._oldest.set(float(row["oldest"]))
        self._queue.set(queue_is_available)
        return generate_latest(self._registry)
