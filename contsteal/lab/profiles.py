"""Profiles: what `notebooks/profiles/<name>.yaml` may say, as strict models, and how it is read."""

import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from functools import partial
from numbers import Real
from typing import Annotated, Any, Literal, Self, get_type_hints

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic_core import ErrorDetails

from contsteal import attacks, augment, choice, data, encoders, fitting, loop, methods, pretrain
from contsteal.lab import artifacts

PROFILES = artifacts.ROOT / "notebooks" / "profiles"
PAIRS = ("offset",)  # lists whose places differ in meaning: their values may be equal
OF_ATTACKS = ("attacks", "losses", "elsewhere_losses", "classifiers", "longer", "headline", "searched",
              "broken", "anew", "again")  # parameters of notebooks that name attacks  # fmt: skip
SPLITS = {"train_split": "train", "query_split": "train"}  # read of `data` and of `query_data`
OF_METHOD = ("temperature", "hidden", "projection", "weights", "inputs")


# What may follow an attack's name: "info-nce, own views" is InfoNCE on views of the surrogate's own.
VARIANTS: dict[str, dict[str, Any]] = {
    "clean": {"views": "clean"},
    "own views": {"views": "surrogate"},
    "shared views": {"views": "shared"},
    "independent views": {"views": "independent"},
    "anew": {"answers": 0},
    "RandAugment": {"policy": "randaugment"},
    "shuffled": {"shuffled": True},
    "temperature 100": {"temperature": 100.0},
    "no learning": {"lr": 1e-9},
    "turned": {"views": "shared", "policy": "rotation"},
    # Adam at 3e-4 in batches of 32, as in Cont-Steal's code; the schedule stays ours.
    "published optimizer": {"lr": 3e-4, "batch": 32, "weight_decay": 0.0},
}
PUBLISHED: dict[str, dict[str, Any]] = {  # optimizers of attacks with other code
    "info-nce": {"lr": 3e-4, "batch": 256},
    "soft-nn": {"lr": 1e-3, "batch": 256},
    "wasserstein": {"lr": 1e-3, "batch": 64},
    "sup-con": {"optimizer": "sgd", "lr": 0.05, "batch": 256},
    "stolen-encoder": {"optimizer": "sgd", "lr": 1e-3, "batch": 64, "weight_decay": 5e-4},
    "rda": {"lr": 1e-3, "batch": 100},
}


def variant(name: str) -> tuple[str, dict[str, Any]]:
    """Return an attack's name in `steal.ATTACKS` and the fields of its config that its variants change.

    Raises ValueError for an unknown attack or variant, with those that exist.
    """
    attack, *given = fitting(name, "attack", str).split(", ")
    choice(attack, "attack", attacks.ATTACKS)
    own = PUBLISHED.get(attack)
    known = VARIANTS | ({"published optimizer": own} if own else {})
    return attack, {k: v for w in given for k, v in known[choice(w, "variant", known)].items()}


Rate = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
# Fields whose values are words, and those that exist.
WORDS: dict[str, Iterable[str]] = {
    "attack": attacks.ATTACKS,
    "method": [*methods.METHODS, pretrain.READY],
    "optimizer": loop.OPTIMIZERS,
    "policy": augment.POLICIES,
}
Data = Annotated[str, AfterValidator(lambda name: name and data.known(name))]  # "": another one's


class Strict(BaseModel):
    """A table whose names and types must be right; a whole number may stand for a float."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _list_known_names(cls, given: Any) -> Any:
        """Refuse an unknown name with those that exist, which pydantic's own message leaves out."""
        for name in given if isinstance(given, dict) else ():
            choice(name, "parameter", cls.model_fields)
        return given


def _fields(config: type) -> dict[str, Any]:
    """Return the fields of a dataclass, each with its type, its limits and its default."""
    hints = get_type_hints(config, include_extras=True)
    checks = {name: AfterValidator(partial(_check, name, hint)) for name, hint in hints.items()}
    return {f.name: (Annotated[hints[f.name], checks[f.name]], f.default) for f in fields(config)}


def _check(name: str, hint: Any, value: Any) -> Any:
    """Refuse a number beyond a field's limits, and an unknown word with those that exist."""
    if name == "encoder" and value not in encoders.CIFAR_STEM:  # known without timm's long import
        encoders.check(value)
    if name in WORDS and value is not None:
        choice(value, name, WORDS[name])
    return fitting(value, name, hint)


class Watermark(Strict):
    """How a victim is marked.

    `start` "victim" tunes the mark into the finished victim. `images` of 0 are all; `batch` and `lr` of
    0 are the recipe's; `data` names the images that carry the mark, "" the victim's.
    """

    kind: Literal["rotation", "sslguard"] = "rotation"
    start: Literal["victim", "scratch"] = "victim"
    epochs: int = Field(default=0, ge=1)
    images: Count = 0
    batch: Count = 0
    lr: float = Field(default=0.0, ge=0)
    weight: float = Field(default=1.0, ge=0)
    trained_head: bool = True
    data: Data = ""

    @model_validator(mode="after")
    def _check_mark(self) -> Self:
        if self.model_fields_set and "epochs" not in self.model_fields_set:
            raise ValueError("set epochs to 1 or more")
        if (self.kind, self.start) == ("sslguard", "scratch"):
            raise ValueError("sslguard marks a finished encoder: set start to victim")
        return self


class Expectation(Strict):
    """What a profile expects of an encoder on a task, and why."""

    encoder: str
    task: str
    metric: Literal["accuracy", "knn"]
    low: float = 0.0
    high: float = 1.0
    source: str = ""


class Victim(create_model("V", __base__=Strict, **_fields(methods.Config))):  # type: ignore[misc]
    """How an encoder is trained."""


class Surrogate(create_model("S", __base__=Strict, **_fields(attacks.Config))):  # type: ignore[misc]
    """How an encoder is stolen, by one that is named."""

    encoder: Annotated[str, AfterValidator(partial(_check, "encoder", str))]


def _rated(name: str) -> str:
    if not variant(name)[1].keys() <= {"views"}:
        raise ValueError(f"{name!r}: name an attack, with no other word than its views")
    return name


class Common(Strict):
    """The settings that all notebooks of a profile share."""

    data: Data
    image_size: int = Field(ge=8)
    train_images: Count
    probe_images: Count
    probe_draws: Positive = 1  # sets of so many images over which an accuracy is a mean
    test_images: Count
    query_data: Data
    query_images: Count
    victim: Victim
    # Victims by other methods, where they are trained differently.
    methods: dict[Annotated[str, AfterValidator(partial(_check, "method", str))], Victim] = {}
    # Further victims, such as ready encoders, by names that `method` takes.
    victims: dict[str, Victim] = {}
    supervised: Victim
    surrogate: Surrogate
    # Learning rates of attacks, where they are not the surrogate's `lr`.
    rates: dict[Annotated[str, AfterValidator(_rated)], Rate] = {}
    workers: Positive = 1
    at_once: Positive = 1
    price: float = Field(0.0, ge=0)
    watermark: Watermark = Watermark()
    train_split: str = "train"
    query_split: str = "train"


class Changes(Common):
    """A profile's settings as an experiment changes them, and the victim's method or name."""

    method: str | None = None


class Profile(Strict):
    """A file of `notebooks/profiles`."""

    about: str = ""
    common: Common
    notebooks: dict[str, dict[str, Any]] = {}
    expectations: list[Expectation] = []
    tables: list[dict[str, Any]] = []  # published ones, as docs/tables.py reads them


def validated(model: type[BaseModel], given: object, place: str) -> Any:
    """Return a model of what is given; ValueError with a sentence for each mistake, after its `place`."""
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise ValueError("\n".join(_sentence(e, place) for e in error.errors())) from None


def _sentence(error: ErrorDetails, place: str) -> str:
    places = (f"[{p}]" if isinstance(p, int) else f".{p}" for p in error["loc"] if p != "[key]")
    name = "".join(places).removeprefix(".").removeprefix("common.")
    if error["type"] == "missing":
        return f"{place}: {name} is needed; demo.yaml shows how"
    message = re.sub("^(Input|List) ", "", error["msg"]).partition(" or instance of")[0]
    if error["type"] == "value_error":
        return f"{place}{name and ', '}{name}: {message.removeprefix('Value error, ')}"
    hint = "; YAML reads 1e-3 as text, write 1.0e-3" if error["type"] == "float_type" else ""
    return f"{place}: {name}{name and '='}{error['input']!r} {message}{hint}"


def check(given: dict[str, Any], known: dict[str, Any], place: str) -> None:
    """Raise ValueError for a name that is not known or a value of another type than its default's.

    So do NaN, infinity, a list that names a value twice, and an unknown attack.
    """
    types: dict[str, Any] = {name: (_type(default), default) for name, default in known.items()}
    validated(create_model("Parameters", __base__=Strict, **types), given, place)
    values = known | given
    values["seeds and more_seeds"] = [*values.get("seeds", ()), *values.get("more_seeds", ())]
    for name, value in _nested(values):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{place}: {name}={value!r}: a finite number is needed")
        if isinstance(value, list) and name not in PAIRS and "[" not in name:
            distinct(value, f"{place}: {name}=")
        if isinstance(value, str) and re.split(r"[.\[]", name)[0] in OF_ATTACKS:
            try:
                variant(value)
            except ValueError as error:
                raise ValueError(f"{place}: {name}: {error}") from None


def distinct(values: Iterable[Any], name: str = "") -> list[Any]:
    """Return a list; ValueError where it names a value twice: `name` stands before its values.

    A repeated seed or task would count as independent evidence, and make intervals too short.
    """
    values = list(values)
    words = [value if isinstance(value, Real) else repr(value) for value in values]  # 0 is 0.0
    if repeated := [word for k, word in enumerate(words) if word in words[:k]]:
        raise ValueError(f"{name}{values} names {repeated[0]} twice: name it once")
    return values


def _nested(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a value and all that lists and tables hold in it, each with its place."""
    yield name, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _nested(inner, f"{name}.{key}".removeprefix("."))
    elif isinstance(value, list | tuple):
        for k, inner in enumerate(value):
            yield from _nested(inner, f"{name}[{k}]")


def _type(default: Any) -> Any:
    """Return the type of values that may stand for a default."""
    if not isinstance(default, list):
        return Any if default is None else type(default)
    kinds = [_type(value) for value in default]
    if len({*map(type, default)}) > 1:  # a record: [name, split, count]
        return Annotated[tuple.__class_getitem__(tuple(kinds)), Field(strict=False)]
    values = list.__class_getitem__(kinds[0] if kinds else Any)
    return Annotated[values, Field(min_length=len(kinds[:1]))]


# The fast one, which a PyYAML without libyaml lacks.
class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML whose tables name each key once, of which plain YAML would take the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        distinct([key.value for key, _ in node.value], f"line {node.start_mark.line + 1}: ")
        return super().construct_mapping(node, deep)


def names() -> list[str]:
    """Return the profiles that exist."""
    return sorted(p.stem for p in PROFILES.glob("*.yaml"))


def profile(name: str) -> dict[str, Any]:
    """Return a profile: `about`, `common` settings, parameters per notebook, expectations.

    Raises ValueError for a profile that does not exist (with those that do), for text that is not
    YAML, and for names that are unknown or missing, wrong types and values, with the place.
    """
    known = names() or ["those in a clone of the repository"]  # which an installed package lacks
    path = PROFILES / f"{choice(name, 'profile', known)}.yaml"
    try:
        text = path.read_bytes()
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, _Loader)):
            raise ValueError("an alias, which could grow without end: write its values out")
        settings: dict[str, Any] = yaml.load(text, _Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{path.name} cannot be read: {' '.join(str(error).split())}") from error
    validated(Profile, settings, path.name)
    return settings


def changed(name: str, changes: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Return a profile's common settings under `changes`, and the victim's method if they name one.

    Raises ValueError for a setting that no profile has, a value of another type, or an unknown method.
    """
    settings = SPLITS | profile(name)["common"] | changes
    validated(Changes, settings, f"changes of {name}")
    method = settings.pop("method", None)
    if method is not None:
        choice(method, "method", [*methods.METHODS, *settings.get("victims", {})])
    return settings, method


def watermark(given: dict[str, Any]) -> dict[str, Any]:
    """Return how a victim is marked, defaults filled in; {} for one that is not."""
    validated(Watermark, given, "watermark")
    return Watermark().model_dump() | given if given else {}


def lengthened(changes: dict[str, Any]) -> dict[str, Any]:
    """Return changes of a config in which epochs, where they are given, replace the profile's steps."""
    return {"steps": 0} | changes if "epochs" in changes else changes


def config(
    common: dict[str, Any], part: str = "victim", method: str | None = None
) -> methods.Config:
    """Return how a profile trains its "victim" or "supervised" encoder, or a victim by another method.

    `method` may also be the name of one of its `victims`.
    """
    named = common.get("victims", {}).get(method)
    given = (named or common[part]) | {"image_size": common["image_size"]}
    if named:
        method = None
    own_method = given.get("method", methods.Config.method)
    if method not in (None, own_method):  # these belong to a method, not to a victim
        given = {k: v for k, v in given.items() if k not in OF_METHOD}
    given["method"] = method or own_method
    if given.get("weights") not in (None, "timm"):  # a relative path starts at the repository
        given["weights"] = str(artifacts.ROOT / os.path.expanduser(given["weights"]))
    return methods.Config(**given | lengthened(common.get("methods", {}).get(given["method"], {})))
