"""Job ids: arq takes any string, RQ only `[A-Za-z0-9_-]+`; a foreign id in a list would end a stock worker."""

import base64
import re

_LEGAL = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPED = "b64_-"


def to_rq_id(job_id: str) -> str:
    """The id under which RQ knows a job: legal ids as they are, all others reversibly escaped."""
    if _LEGAL.fullmatch(job_id) and from_rq_id(job_id) == job_id:
        return job_id
    return _ESCAPED + base64.urlsafe_b64encode(job_id.encode()).decode().rstrip("=")


def from_rq_id(rq_id: str) -> str:
    """The id that the caller gave; one of RQ's own that only looks escaped stays as it is."""
    if not rq_id.startswith(_ESCAPED):
        return rq_id
    encoded = rq_id.removeprefix(_ESCAPED)
    try:
        job_id = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
    except ValueError:
        return rq_id
    return job_id if to_rq_id(job_id) == rq_id else rq_id
