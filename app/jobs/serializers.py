"""Which serializer a client uses: RQ's (`dumps` and `loads`), or arq's two functions dressed as one."""

import pickle
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from rq.serializers import DefaultSerializer, PickleSerializer, Serializer, resolve_serializer

from app.jobs.trampoline import TRAMPOLINE

DictSerializer = Callable[[dict[str, Any]], bytes | str]
DictDeserializer = Callable[[bytes], dict[str, Any]]
_UNPICKLING = (DefaultSerializer, PickleSerializer)


class ArqSerializer:
    """An RQ serializer made of arq's `job_serializer` and `job_deserializer`; pickle stands in for a missing one.

    arq hands these functions a dict. RQ serializes a call, (path, instance, args, kwargs), a job's result and its
    meta. So an arq job's call becomes arq's job dict, keys t f a k et; anything else, exceptions too, stands under
    r in a dict with the keys of arq's result. Make it a module's variable to name it to `rq worker --serializer`.
    """

    def __init__(
        self, job_serializer: DictSerializer | None = None, job_deserializer: DictDeserializer | None = None
    ) -> None:
        self._dumps = job_serializer or pickle.dumps
        self._loads = job_deserializer or pickle.loads
        self.__qualname__ = type(self).__qualname__  # RQ's workers ask their serializer for it

    @property
    def unpickles(self) -> bool:
        """Whether reading with it runs what the bytes say."""
        return self._loads is pickle.loads

    def dumps(self, obj: Any, /) -> bytes:
        """The bytes that `job_serializer` makes."""
        now_ms = round(time.time() * 1000)
        if _is_arqs_call(obj):
            _, _, (name, *args), kwargs = obj
            return self._packed({"t": None, "f": name, "a": tuple(args), "k": kwargs, "et": now_ms})
        call = {"t": 1, "f": "", "a": (), "k": {}, "et": now_ms}
        return self.dumps_result(obj, {**call, "s": True, "st": now_ms, "ft": now_ms, "q": "", "id": ""})

    def dumps_result(self, value: Any, known: Mapping[str, Any]) -> bytes:
        """The bytes of a result, or of an exception, with what is known of its job under arq's keys."""
        return self._packed({**known, "r": value})

    def loads(self, data: bytes, /) -> Any:
        """What `dumps` was given, as far as the functions keep types."""
        fields = self._loads(data)
        if "r" in fields:
            return fields["r"]
        return TRAMPOLINE, None, (fields["f"], *fields["a"]), fields["k"]

    def _packed(self, fields: dict[str, Any]) -> bytes:
        made = self._dumps(fields)
        return made.encode() if isinstance(made, str) else made


def _is_arqs_call(obj: Any) -> bool:
    return isinstance(obj, tuple) and len(obj) == 4 and obj[0] == TRAMPOLINE and bool(obj[2])  # noqa: PLR2004 - RQ's


def choose_serializer(
    serializer: Serializer | str | None,
    job_serializer: DictSerializer | None,
    job_deserializer: DictDeserializer | None,
) -> Serializer:
    """The RQ serializer that these arguments ask for; RQ's default, pickle, if they ask for none.

    Raises:
        ValueError: both an RQ serializer and one of arq's functions are given.
    """
    if job_serializer is None and job_deserializer is None:
        return resolve_serializer(serializer)
    if serializer is not None:
        raise ValueError("use either 'serializer' or 'job_serializer' and 'job_deserializer', not both")
    return ArqSerializer(job_serializer, job_deserializer)


def serializer_of(given: "Serializer | DictDeserializer | str") -> Serializer:
    """An RQ serializer from one, its name, or arq's deserializer."""
    if callable(given) and not hasattr(given, "loads"):
        return ArqSerializer(None, given)
    return resolve_serializer(given)  # type: ignore[arg-type]  # a serializer or its name


def may_unpickle(serializer: Serializer) -> bool:
    """Whether whoever chose this serializer trusts what Redis holds with running code."""
    return serializer in _UNPICKLING or (isinstance(serializer, ArqSerializer) and serializer.unpickles)


def stored_exception(serializer: Serializer, stored: bytes) -> Any:
    """A job's exception, or what arq's two functions make of it; None where nothing is to be made of it.

    It is unpickled only where the serializer trusts Redis with that.
    """
    try:
        if may_unpickle(serializer):
            error = pickle.loads(stored)  # noqa: S301 - the serializer is pickle
            return error if isinstance(error, BaseException) else None
        return serializer.loads(stored) if isinstance(serializer, ArqSerializer) else None
    except Exception:  # noqa: BLE001 - its class may be unknown here; the traceback's text is always there
        return None


def unpacked(data: bytes) -> bytes:
    """A job's serialized call; as RQ, which has not always packed it."""
    try:
        return zlib.decompress(data)
    except zlib.error:
        return data
