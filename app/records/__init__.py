"""What Postgres holds of files, vector stores, batches and ingestions: values and their SQL.

Functions take a `conn` and never begin or commit: whoever knows the unit of work does.
"""
