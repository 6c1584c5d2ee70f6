"""What `precision:` of nanhunt.yaml may say: autocast, loss scaler, the model's dtype, and the emulated recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    Tag,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from nanhunt.errors import UsageError
from nanhunt.recipes.catalogue import lookup as lookup_recipe
from nanhunt.training.config_section import Number, Positive, Section, Text, Whole

__all__ = ["GradScalerConfig", "PrecisionConfig", "RecipeConfig"]

_DTYPES = {
    "float16": "fp16",
    "half": "fp16",
    "bfloat16": "bf16",
    "float32": "fp32",
    "float": "fp32",
}


def _dtype(value: object) -> object:
    """Turn a dtype's other names into ours; what is no name at all is left for the validator to refuse."""
    if not isinstance(value, str):
        return value
    name = value.removeprefix("torch.").lower()
    return _DTYPES.get(name, name)


def _autocast(value: object) -> object:
    name = _dtype(value)
    return "none" if name in (None, False, "fp32", "off", "no", "null") else name


def _params(value: object) -> object:
    name = _dtype(value)
    return None if name == "none" else name


class GradScalerConfig(Section):
    """The arguments of `torch.amp.GradScaler`, with its own defaults."""

    init_scale: Positive = 65536.0
    growth_factor: Annotated[Number, Field(gt=1)] = 2.0
    backoff_factor: Annotated[Number, Field(gt=0, lt=1)] = 0.5
    growth_interval: Annotated[Whole, Field(ge=1)] = 2000
    enabled: Annotated[bool, Field(strict=True)] = True


def _scaler_form(value: object) -> str:
    return "arguments" if isinstance(value, dict | GradScalerConfig) else "switch"


def _recipe_name(value: str) -> str:
    try:
        lookup_recipe(value)
    except UsageError as error:
        raise ValueError(error.message) from error
    return value


class RecipeConfig(Section):
    """A precision recipe by name, or several joined by `+`, and what it leaves alone; a plain name may stand for it."""

    name: Annotated[Text, AfterValidator(_recipe_name)] = Field(description="a recipe, or several joined by +")
    skip: list[Text] = Field(
        default=[], description="modules whose products stay in their own precision: names, last parts or patterns"
    )
    amax_history: Annotated[Whole, Field(ge=1)] = Field(
        default=1024, description="steps whose amax a delayed scale looks back on"
    )
    margin: Annotated[Whole, Field(ge=0)] = Field(default=0, description="binades that a delayed scale leaves free")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_what_it_sets(self) -> RecipeConfig:
        products = lookup_recipe(self.name).products
        if "skip" in self.model_fields_set and products is None:
            raise ValueError(f"skip: the recipe {self.name} quantizes no product")
        idle = [k for k in ("amax_history", "margin") if k in self.model_fields_set]
        if idle and not (products is not None and products.delayed):
            raise ValueError(f"{' and '.join(idle)}: the recipe {self.name} has no delayed scales")
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Say that the plain name may stand for the mapping."""
        mapping = handler.resolve_ref_schema(handler(core_schema))
        return {"anyOf": [{"type": "string"}, mapping]}


class PrecisionConfig(Section):
    """What is computed and stored in which format."""

    autocast: Annotated[Literal["none", "fp16", "bf16"], BeforeValidator(_autocast)] = Field(
        default="none", description="dtype of torch.autocast"
    )
    grad_scaler: (
        Annotated[
            Annotated[bool, Field(strict=True), Tag("switch")] | Annotated[GradScalerConfig, Tag("arguments")],
            Discriminator(_scaler_form),
        ]
        | None
    ) = Field(default=None, description="true, false, or GradScaler's own arguments")
    params: Annotated[Literal["fp32", "bf16", "fp16"] | None, BeforeValidator(_params)] = Field(
        default=None, description="dtype the model is cast to; without it the model stays as it was built"
    )
    recipe: RecipeConfig | None = Field(default=None, description="emulated low-precision recipe")

    def scaler_arguments(self) -> dict[str, Any] | None:
        """Return the arguments of `torch.amp.GradScaler`, or None where no scaler is wanted."""
        if self.grad_scaler is None or self.grad_scaler is False:
            return None
        scaler = GradScalerConfig() if self.grad_scaler is True else self.grad_scaler
        return scaler.model_dump() if scaler.enabled else None
