"""OpenAI's filter grammar as SQL over `v.attributes`; every key and value is a bound parameter.

Source: OpenAI API reference, vector stores search, `ComparisonFilter` and `CompoundFilter`. A file without the
attribute matches only `ne` and `nin`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from app.errors import BadRequest

Scalar = str | float | bool
_MOST_NESTED = 8
_MOST_VALUES = 2000
"""Postgres binds 32,767 in all."""

_COMPARISONS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}


@dataclass(slots=True)
class FilterSql:
    """Collects the parameters of a condition, numbered from `first_parameter` on."""

    first_parameter: int
    parameters: list[object] = field(default_factory=list)

    def bind(self, value: object) -> str:
        """The placeholder of a value.

        Raises:
            BadRequest: there are too many.
        """
        if len(self.parameters) >= _MOST_VALUES:
            raise BadRequest(f"Filters may hold {_MOST_VALUES} keys and values at most.", param="filters")
        self.parameters.append(value)
        return f"${self.first_parameter + len(self.parameters) - 1}"

    def condition(self, given: Mapping[str, object], *, depth: int = 0) -> str:
        """The SQL of a comparison or compound filter.

        Raises:
            BadRequest: names the part that is wrong.
        """
        kind = str(given.get("type"))
        if kind in {"and", "or"}:
            return self._compound(kind, given.get("filters"), depth)
        key, value = given.get("key"), given.get("value")
        if not isinstance(key, str):
            raise BadRequest("A filter needs a string 'key'.", param="filters")
        _scalar(key)
        if kind in {"eq", "ne"}:
            return self._equality(key, value, negated=kind == "ne")
        if kind in {"in", "nin"}:
            return self._membership(key, value, negated=kind == "nin")
        if kind in _COMPARISONS:
            return self._order(key, value, _COMPARISONS[kind])
        raise BadRequest(
            f"Unknown filter type '{kind}'; use eq, ne, gt, gte, lt, lte, in, nin, and, or.", param="filters"
        )

    def _compound(self, kind: str, parts: object, depth: int) -> str:
        if depth >= _MOST_NESTED:
            raise BadRequest(f"Filters may be nested {_MOST_NESTED} deep at most.", param="filters")
        if not isinstance(parts, Sequence) or isinstance(parts, str) or not parts:
            raise BadRequest(f"A filter of type '{kind}' needs a non-empty list 'filters'.", param="filters")
        conditions = []
        for part in parts:
            if not isinstance(part, Mapping):
                raise BadRequest("Each of 'filters' must be an object.", param="filters")
            conditions.append(self.condition(part, depth=depth + 1))
        return "(" + f" {kind.upper()} ".join(conditions) + ")"

    def _equality(self, key: str, value: object, *, negated: bool) -> str:
        contains = f"v.attributes @> {self._as_json({key: _scalar(value)})}::jsonb"
        return f"NOT {contains}" if negated else contains

    def _membership(self, key: str, value: object, *, negated: bool) -> str:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise BadRequest("Filters of type 'in' and 'nin' need a list 'value'.", param="filters")
        if not value:
            return "true" if negated else "false"
        found = " OR ".join(self._equality(key, each, negated=False) for each in value)
        return f"NOT ({found})" if negated else f"({found})"

    def _order(self, key: str, value: object, operator: str) -> str:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise BadRequest(f"'{key}' can only be compared with a number or a string.", param="filters")
        _scalar(value)
        name, kind = self.bind(key), "string" if isinstance(value, str) else "number"
        # CASE keeps the cast from being tried on attributes of the other type
        read, cast = (
            (f"v.attributes ->> {name}", "text")
            if kind == "string"
            else (
                f"(v.attributes ->> {name})::double precision",
                "double precision",
            )
        )
        bound = self.bind(value if isinstance(value, str) else float(value))
        collate = ' COLLATE "C"' if kind == "string" else ""
        return (
            f"CASE WHEN jsonb_typeof(v.attributes -> {name}) = '{kind}' "
            f"THEN {read}{collate} {operator} {bound}::{cast} ELSE false END"
        )

    def _as_json(self, value: object) -> str:
        return f"({self.bind(json.dumps(value))}::text)"


def _scalar(value: object) -> Scalar:
    if isinstance(value, float) and not math.isfinite(value):
        raise BadRequest("Filter values must be finite numbers.", param="filters")
    if isinstance(value, str) and not _is_storable(value):
        raise BadRequest("Filter texts may not hold NUL characters or lone surrogates.", param="filters")
    if isinstance(value, str | int | float | bool):
        return value
    raise BadRequest("Filter values must be strings, numbers or booleans.", param="filters")


def _is_storable(text: str) -> bool:
    """Whether Postgres takes it: it refuses NUL, and UTF-8 has no surrogates."""
    return "\x00" not in text and not any("\ud800" <= character <= "\udfff" for character in text)
