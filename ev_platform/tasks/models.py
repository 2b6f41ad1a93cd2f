"""Files that people write, read into frozen models; what does not fit is said by file and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from ev_platform.errors import UserError

Model = TypeVar("Model", bound=BaseModel)


class Strict(BaseModel):
    """Frozen, and without keys that it does not declare."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the top level"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}: {first['msg'].lower()}{more}"


def read_model(kind: type[Model], file: Path) -> Model:
    """Read a YAML or JSON file into a model.

    Raises:
        UserError: If the file does not parse or does not fit; names the file and the field.
    """
    try:
        text = file.read_text(encoding="utf-8")
        data: Any = json.loads(text) if file.suffix == ".json" else (yaml.safe_load(text) or {})
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 (byte {error.start}): save it as UTF-8.") from error
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file} is not valid {file.suffix[1:].upper()}: {' '.join(str(error).split())}.") from error
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{file}: {_explain(error)}.") from error
