"""Templates in `str.format`'s language, filled with the fields of a record.

`{text}` is the field `text`; `{choices[label]}` is the value at `label` in the field `choices`. A brace that is meant
as one is written twice.
"""

import string
from collections.abc import Mapping
from typing import Any

from flm_jax.tasks.problems import Problem

_FORMATTER = string.Formatter()


def fields(template: str, setting: str) -> set[str]:
    """The names of the fields that a template asks for, e.g. `{"choices"}` for `"{choices[label]}"`.

    Args:
        template: to look at.
        setting: where it comes from, for the error: "the gin binding `Dialogues.prompt`", or a flag.

    Raises:
        ValueError: it is no template, or a field has no name.
    """
    try:
        found = [name for _, name, _, _ in _FORMATTER.parse(template) if name is not None]
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"expected a template like '{{text}}' (a brace that is meant as one twice), found {template!r} ({error}): "
            f"change {setting}"
        ) from error
    names = {name.partition("[")[0].partition(".")[0] for name in found}
    if any(not name or name.isdigit() for name in names):
        raise ValueError(
            f"expected a template whose fields have names, like '{{text}}', found {template!r}: change "
            f"{setting}"
        )
    return names


def look_up(record: Mapping[str, Any], path: str) -> Any:
    """The value at `"label"`, or at `"choices[label]"`.

    Raises:
        Problem: there is none.
    """
    try:
        return _FORMATTER.get_field(path, (), record)[0]
    except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        raise Problem(f"field {path!r} is missing (found {sorted(map(str, record))})") from error


def fill(template: str, record: Mapping[str, Any]) -> str:
    """The template with the record's fields, which hold text or numbers.

    Raises:
        Problem: a field is missing, blank, something else, or does not fit its format.
    """
    parts = []
    for literal, path, form, conversion in _FORMATTER.parse(template):
        parts.append(literal)
        if path is None:
            continue
        value = look_up(record, path)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise Problem(f"expected text or a number in field {path!r}, found {type(value).__name__}")
        if isinstance(value, str) and not value.strip():
            raise Problem(f"field {path!r} is empty")
        field = f"{{{path}{f'!{conversion}' if conversion else ''}{f':{form}' if form else ''}}}"
        try:
            parts.append(field.format_map(record))
        except (ValueError, OverflowError, LookupError, AttributeError, TypeError) as error:
            raise Problem(
                f"field {path!r} does not fit {field!r}, found {str(value)[:60]!r} ({error})"
            ) from error
    return "".join(parts)
