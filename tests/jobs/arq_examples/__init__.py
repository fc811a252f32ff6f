"""The examples of arq 0.28's documentation (docs/examples, MIT licence, Samuel Colvin), as written there.

Only their imports are changed: `arq`, `arq.connections` and `arq.jobs` to `app.jobs`.
"""
