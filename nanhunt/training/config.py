"""RunConfig: what `nanhunt.yaml` may say, and messages that name the file, the line, the key and the mend."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from nanhunt.errors import ConfigError
from nanhunt.training.config_data import DataSpec, LossesSpec, check_import_string
from nanhunt.training.config_errors import described, shown
from nanhunt.training.config_precision import PrecisionConfig
from nanhunt.training.config_section import Number, Positive, Section, Text, Whole
from nanhunt.training.yaml_file import read_yaml

__all__ = [
    "SCHEMA_FILE",
    "CheckpointKeys",
    "ImportSpec",
    "ModelSpec",
    "RunConfig",
    "TrainConfig",
    "find_config",
    "json_schema",
    "load_config",
]

#: The file that editors complete `nanhunt.yaml` from; a test checks that it is `json_schema()`.
SCHEMA_FILE = Path(__file__).parents[1] / "schema" / "nanhunt.schema.json"


class ImportSpec(Section):
    """An import string `package.module:attribute` or `path/to/file.py:attribute`, and the arguments to call it with."""

    call: Text = Field(description="package.module:attribute, or path/to/file.py:attribute")
    kwargs: dict[str, Any] = Field(default={}, description="keyword arguments of the call")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        if isinstance(value, str):
            value = {"call": value}
        call = value.get("call") if isinstance(value, dict) else None
        if isinstance(call, str):
            check_import_string(call)
        return value

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Say that the plain string may stand for the mapping."""
        mapping = handler.resolve_ref_schema(handler(core_schema))
        return {"anyOf": [{"type": "string", "pattern": "^.+:.+$"}, mapping]}


class ModelSpec(ImportSpec):
    """The callable that returns the model; where several ranks replay it may ask for their `mesh`, `rank`, `world_size`."""

    mesh: dict[Text, Annotated[Whole, Field(ge=1)]] | None = Field(
        default=None,
        description="dimensions of the mesh of ranks, outermost first, as {dp: 2, tp: 4}; without it all are in a row",
    )


class TrainConfig(Section):
    """The loop: how many steps, from how many micro-batches, clipped how, seeded how."""

    steps: Annotated[Whole, Field(ge=1)] = Field(default=50, description="optimizer steps to replay")
    accumulate: Annotated[Whole, Field(ge=1)] = Field(default=1, description="micro-batches a step")
    loss_from_shares: bool = Field(
        default=False,
        description="report a step's loss as a recorder hears it: what backward begins with, times accumulate",
    )
    clip_grad_norm: Positive | None = Field(default=None, description="largest global norm of the gradients")
    clip_grad_value: Positive | None = Field(default=None, description="largest magnitude of a gradient element")
    clip_param_norm: Positive | None = Field(default=None, description="largest norm of each parameter's gradient")
    clip_norm_type: Number = Field(
        default=2.0,
        description="order of the norm that clip_grad_norm and clip_param_norm take; .inf is the largest magnitude",
    )
    clip_foreach: bool | None = Field(
        default=None, description="torch's own argument: whether those clips take all gradients in one launch"
    )
    agc: Positive | None = Field(default=None, description="adaptive clipping: largest norm of gradient over weight")
    seed: Annotated[Whole, Field(ge=0, lt=2**63)] | None = Field(
        default=1337, description="of Python, NumPy and torch, where the checkpoint holds no random state"
    )

    @model_validator(mode="after")
    def _one_way_of_clipping(self) -> TrainConfig:
        clips = ("clip_grad_norm", "clip_grad_value", "clip_param_norm", "agc")
        chosen = [k for k in clips if getattr(self, k) is not None]
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} exclude each other: keep one")
        return self


class CheckpointKeys(Section):
    """Where the parts lie in the checkpoint's dict, as dotted paths; needed only for layouts that are not known."""

    model: Text | None = None
    optimizer: Text | None = None
    scheduler: Text | None = None
    scaler: Text | None = None
    step: Text | None = None
    loader: Text | None = Field(default=None, description="state of the data loader")


class RunConfig(Section):
    """`nanhunt.yaml`: which code makes the run, and how its steps go."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="nanhunt.yaml")

    model: ModelSpec | None = Field(
        default=None,
        description="callable that returns the nn.Module; may be left out where the checkpoint's folder has a config.json",
    )
    data: DataSpec = Field(description="callable that returns the batches, an iterable of them, or a file of batches")
    loss: ImportSpec | None = Field(default=None, description="callable (model, batch) -> scalar loss")
    optimizer: ImportSpec | None = Field(
        default=None, description="Optimizer class, or a callable that takes the model and returns the Optimizer"
    )
    scheduler: ImportSpec | None = Field(default=None, description="callable (optimizer) -> LR scheduler")
    train_step: ImportSpec | None = Field(
        default=None, description="callable (model, batch, optimizer) -> loss that runs backward and the update itself"
    )
    precision: PrecisionConfig = PrecisionConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointKeys | None = None
    losses: LossesSpec | None = Field(
        default=None, description="what the original run logged of its losses, to hold the replay's against"
    )

    @model_validator(mode="before")
    @classmethod
    def _without_empty_sections(cls, value: object) -> object:
        """Take `train:` with nothing under it for the section left out."""
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value

    def document(self) -> dict[str, Any]:
        """Return the config as JSON types, defaults filled in."""
        return self.model_dump(mode="json")


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of `nanhunt.yaml`."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **RunConfig.model_json_schema()}


def find_config(explicit: Path | None, checkpoint: Path | None) -> Path:
    """Return the config's path: the one named, else ./nanhunt.yaml, else the one beside the checkpoint.

    Raises ConfigError naming the places that were looked at.
    """
    if explicit is not None:
        if not explicit.exists():
            raise ConfigError(f"{explicit}: no such file", hint=_HOW_TO_START)
        return explicit
    places = [Path("nanhunt.yaml")]
    if checkpoint is not None:
        places.append(checkpoint.parent / "nanhunt.yaml")
    for place in places:
        if place.is_file():
            return place
    looked_at = " and for ".join(dict.fromkeys(str(place.absolute()) for place in places))
    command = f"nanhunt init {checkpoint}" if checkpoint is not None else "nanhunt init"
    raise ConfigError(
        f"no nanhunt.yaml found; looked for {looked_at}",
        hint=f"`{command}` writes one that fits the checkpoint; {_ENOUGH}",
    )


_ENOUGH = "`model: train:build_model`, `data: train:batches` and `loss: train:compute_loss` are enough"
_HOW_TO_START = f"`nanhunt init CKPT` writes one that fits a checkpoint; {_ENOUGH}"


def load_config(path: Path) -> RunConfig:
    """Read and check a config file.

    Raises ConfigError with all that is wrong in it, a line each: `nanhunt.yaml:7:3: train.stepz: unknown key, did you
    mean 'steps'?`.
    """
    file = read_yaml(path)
    if file.value is None:
        raise ConfigError(f"{path}: is empty", hint=_HOW_TO_START)
    if not isinstance(file.value, dict):
        raise ConfigError(f"{path}:1:1: expected `key: value` lines, got {shown(file.value)}", hint=_HOW_TO_START)
    problems = [(second, key, f"written twice, first in line {first.line}") for key, first, second in file.duplicates]
    config = None
    try:
        config = RunConfig.model_validate(file.value)
    except ValidationError as error:
        problems.extend(described(error, file, RunConfig))
    if config is None or problems:
        problems.sort(key=lambda problem: problem[0])
        raise ConfigError(
            "\n".join(f"{path}:{p.line}:{p.column}: {'.'.join(key)}: {text}" for p, key, text in problems)
        )
    return config
