# The image for API and workers alike; the command says which.
FROM python:3.12-slim AS build
WORKDIR /app
RUN python -m venv /venv
COPY requirements.lock ./
RUN /venv/bin/pip install --no-cache-dir --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE alembic.ini ./
COPY app ./app
COPY migrations ./migrations
RUN /venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation -e .

FROM python:3.12-slim
RUN useradd --create-home --uid 10001 sluice && mkdir /data && chown sluice /data
COPY --from=build /venv /venv
COPY --from=build /app /app
WORKDIR /app
USER sluice
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
EXPOSE 8000
CMD ["sluice", "serve", "--host", "0.0.0.0"]
