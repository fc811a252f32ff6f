"""Chunk rows in pgvector: shards, the binary COPY codec, writing, deleting, searching."""
