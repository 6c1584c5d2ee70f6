"""What `data:` and `losses:` of nanhunt.yaml may say: code or a file, as a plain text or with its settings."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

__all__ = ["DataSpec", "LossesSpec", "check_import_string", "is_batch_file"]

_Text = Annotated[str, Field(strict=True, min_length=1)]


def _skip(value: object) -> object:
    """Let true, false and a count of batches pass; `skip: "12"` and `skip: 1.5` are slips."""
    if isinstance(value, bool) or (isinstance(value, int) and value >= 0):
        return value
    raise ValueError(f"expected true, false or a number of batches, got {value!r}")


class DataSpec(BaseModel):
    """Where the batches come from: code that yields them, or a file that holds them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    call: _Text | None = Field(default=None, description="callable that returns the batches, or an iterable of them")
    kwargs: dict[str, Any] = Field(default={}, description="keyword arguments of the call")
    file: _Text | None = Field(default=None, description="a file of batches, .pt or .safetensors, from this folder")
    skip: Annotated[bool | int, BeforeValidator(_skip)] = Field(
        default=False,
        description="batches to read and drop first; true: as many as the run had read when it saved the checkpoint",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        if isinstance(value, str):
            value = {"file": value} if is_batch_file(value) else {"call": value}
        call = value.get("call") if isinstance(value, dict) else None
        if isinstance(call, str):
            check_import_string(call)
        return value

    @model_validator(mode="after")
    def _of_one_kind(self) -> DataSpec:
        if (self.call is None) == (self.file is None):
            both = "call and file exclude each other: keep one" if self.call else None
            raise ValueError(both or "expected `call: train:batches` or `file: batches.pt` under it")
        idle = [k for k in ("kwargs", "skip") if k in self.model_fields_set]
        if self.file is not None and idle:
            raise ValueError(f"{' and '.join(idle)}: a file of batches is read from the checkpoint's step on by itself")
        return self

    @property
    def name(self) -> str:
        """The import string or the file, as messages name it."""
        return self.call or self.file or ""

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Say that the plain text may stand for the mapping."""
        mapping = handler.resolve_ref_schema(handler(core_schema))
        return {"anyOf": [{"type": "string", "pattern": r"^.+:.+$|\.(pt|pth|safetensors)$"}, mapping]}


class LossesSpec(BaseModel):
    """What the original run logged of its losses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: _Text = Field(
        description=".csv, trainer_state.json, a TensorBoard event file or its folder, from this folder"
    )
    tag: _Text | None = Field(default=None, description="TensorBoard tag or CSV column of the loss")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        return {"file": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Say that the plain path may stand for the mapping."""
        mapping = handler.resolve_ref_schema(handler(core_schema))
        return {"anyOf": [{"type": "string"}, mapping]}


def is_batch_file(text: str) -> bool:
    """Whether the text of `data:` names a file of batches rather than code."""
    return text.endswith((".pt", ".pth", ".safetensors"))


def check_import_string(call: str) -> None:
    """Refuse what cannot be an import string; whether it resolves is known only when it is imported."""
    module, colon, attribute = call.rpartition(":")
    if colon and module and attribute:
        return
    where, dot, name = call.strip(":").rpartition(".")
    mend = f"; did you mean '{where}:{name}'?" if dot and where and name != "py" else ""
    raise ValueError(f"expected 'package.module:attribute' or 'path/to/file.py:attribute', got {call!r}{mend}")
