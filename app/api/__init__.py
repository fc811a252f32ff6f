"""Sluice over HTTP: one module a resource, wire models in `wire/`; never imports `ingest`."""
