"""Typed configuration: YAML in, frozen objects inside, `key=value` overrides; a typo names its nearest neighbour."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

from data_pipeline.base.errors import ConfigError, nearest


def _exact(schema: Any, cls: type) -> Any:
    """A core schema whose scalars are strict. Other models within are left alone: they have done it themselves."""
    if isinstance(schema, list | tuple):
        return type(schema)(_exact(part, cls) for part in schema)
    if not isinstance(schema, dict) or (schema.get("type") == "model" and schema["cls"] is not cls):
        return schema
    schema = {key: part if key in ("default", "metadata") else _exact(part, cls) for key, part in schema.items()}
    if schema.get("type") in ("bool", "float", "str"):
        return schema | {"strict": True}
    if schema.get("type") == "int":  # a strict one would refuse 1e4
        return core_schema.no_info_before_validator_function(_no_text, schema)  # type: ignore[arg-type]
    return schema


def _no_text(value: Any) -> Any:
    if isinstance(value, bool | str | bytes):
        raise PydanticKnownError("int_type")
    return value


class Config(BaseModel):
    """Base of every configuration group: immutable, no unknown keys, no silent conversion of types.

    A number is a number: neither text ("20") nor true or false. A whole one may be written as 1e4, a path as text, a
    tuple as a list.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """What pydantic makes of the class, without its conversions of scalars."""
        exact: CoreSchema = _exact(handler(source), cls)
        return exact


ConfigT = TypeVar("ConfigT", bound=Config)


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which also reads `1e-3` as a number (YAML 1.1 takes it for a string), and refuses a key that
    is given twice (YAML's would silently take the last one)."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping, each of whose keys is there once; merged ones (`<<`) do not count, they may be overridden."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)  # type: ignore[no-untyped-call]
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if (key.tag, key.value) in seen:
                problem = f"the key {key.value!r} is given twice"
                raise yaml.composer.ComposerError(None, None, problem, key.start_mark)  # type: ignore[no-untyped-call]
            seen.add((key.tag, key.value))
        return node


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(  # type: ignore[no-untyped-call]
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError when it is missing, damaged or not a mapping."""
    try:
        content = yaml.load(path.read_text(), Loader=_Loader)  # noqa: S506 - derives from SafeLoader
    except FileNotFoundError:
        others = [other.name for other in path.parent.glob("*.yaml")]
        hint = nearest(path.name, others) if others else None
        raise ConfigError("no such configuration file", file=path, remedy=hint) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError("not a readable YAML file", file=path, found=error) from None
    if not isinstance(content, dict):
        raise ConfigError("not a configuration", file=path, found=type(content).__name__, expected="a mapping of keys")
    return content


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """`["training.steps=10"]` as `{"training.steps": 10}`; values are read as YAML."""
    parsed = {}
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise ConfigError("not an override", found=text, expected="key=value, for example training.steps=10")
        try:
            parsed[key.strip()] = yaml.load(value, Loader=_Loader)  # noqa: S506 - derives from SafeLoader
        except yaml.YAMLError as error:
            raise ConfigError("the value of an override is not YAML", key=key, found=error) from None
    return parsed


def apply_overrides(content: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `content` with dotted keys replaced; list items are named by their number (`data.0.weight`)."""
    result: Any = _copy(content)
    for dotted, value in overrides.items():
        node, *rest = result, *dotted.split(".")
        for part in rest[:-1]:
            node = _child(node, part, dotted)
            if not isinstance(node, dict | list):
                raise ConfigError("an override reaches into a plain value", key=dotted, found=f"{part} = {node!r}")
        if isinstance(node, list):
            _child(node, rest[-1], dotted)
            node[int(rest[-1])] = value
        else:
            node[rest[-1]] = value
    return dict(result)


def _copy(node: Any) -> Any:
    if isinstance(node, dict):
        return {k: _copy(v) for k, v in node.items()}
    return [_copy(v) for v in node] if isinstance(node, list) else node


def _child(node: Any, part: str, dotted: str) -> Any:
    if isinstance(node, list):
        if not part.isdecimal() or int(part) >= len(node):
            raise ConfigError("no such list item", key=dotted, found=part, expected=f"a number below {len(node)}")
        return node[int(part)]
    child = node.get(part)
    if child is None:
        child = node[part] = {}
    return child


def build(
    cls: type[ConfigT], content: Mapping[str, Any], *, file: str | Path | None = None, below: str = ""
) -> ConfigT:
    """The typed configuration. Raises ConfigError with every key that is unknown, missing or of a wrong type.

    Args:
        below: where the content stands in its file (`generate.parameters`), for the keys in errors.
    """
    try:
        return cls.model_validate(content)
    except ValidationError as error:
        lines = [_explain(cls, e, below) for e in error.errors()]
        raise ConfigError("the configuration is not valid", file=file, key="\n       ".join(lines)) from None


def load(cls: type[ConfigT], path: str | Path, overrides: Iterable[str] = ()) -> ConfigT:
    """Read, override and check a configuration file."""
    path = Path(path)
    return build(cls, apply_overrides(read_yaml(path), parse_overrides(overrides)), file=path)


def _explain(cls: type[Config], error: Any, below: str) -> str:
    location = [str(part).replace("function-before[_no_text(), ", "[") for part in error["loc"]]
    dotted = ".".join([below, *location] if below else location)
    if error["type"] == "extra_forbidden":
        known = _known_keys(cls, location[:-1])
        return f"{dotted}: unknown key; {nearest(location[-1], known)}"
    if error["type"] == "missing":
        return f"{dotted}: missing"
    message = error["msg"].removeprefix("Value error, ")
    return f"{dotted or '(whole)'}: {message}" + (f" (found {error['input']!r})" if dotted else "")


def _known_keys(cls: type[Config], location: list[str]) -> list[str]:
    kinds = [cls]
    for part in location:
        kinds = [
            found
            for kind in kinds
            for found in _configs_in(kind.model_fields[part].annotation if part in kind.model_fields else kind)
        ]
    return [key for kind in kinds for key in kind.model_fields]


def _configs_in(annotation: Any) -> list[type[Config]]:
    """The configuration classes inside `X | Y`, `X | None`, `tuple[X, ...]` or `dict[str, X]`."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [found for argument in get_args(annotation) for found in _configs_in(argument)]
