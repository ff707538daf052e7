"""Profiles: what `notebooks/profiles/<name>.yaml` may say, read and checked."""

from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from contsteal import attacks, methods, pretrain
from contsteal.lab import artifacts

PROFILES = artifacts.ROOT / "notebooks" / "profiles"
SPLITS = {"train_split": "train", "query_split": "train"}  # read of `data` and of `query_data`
COMMON: dict[str, Any] = {
    "data": "", "image_size": 0, "train_images": 0, "probe_images": 0, "test_images": 0,
    "query_data": "", "query_images": 0, "victim": {}, "methods": {}, "supervised": {}, "surrogate": {},
    "workers": 0, "at_once": 0, "price": 0.0, "watermark": {}, **SPLITS,
}  # fmt: skip
MARKS = (("rotation", "victim"), ("rotation", "scratch"), ("sslguard", "victim"))
WATERMARK = {
    "kind": "rotation", "start": "victim", "epochs": 0, "images": 0, "batch": 0, "lr": 0.0,
    "weight": 1.0, "trained_head": True, "data": "",
}  # fmt: skip
EXPECTATION = {"encoder": "", "task": "", "metric": "", "low": 0.0, "high": 1.0, "source": ""}


def names() -> list[str]:
    """Return the profiles there are."""
    return sorted(p.stem for p in PROFILES.glob("*.yaml"))


def fits(value: object, default: object) -> bool:
    """Say whether a value is of its default's type; a whole number may stand for a float."""
    if isinstance(default, list):
        full = isinstance(value, list) and bool(value) >= bool(default)
        if len({type(d) for d in default}) > 1:  # a record: [name, split, count]
            return full and len(value) == len(default) and all(map(fits, value, default))
        return full and all(fits(v, d) for v in value for d in default[:1])
    if isinstance(default, float):
        return type(value) in (int, float)
    return default is None or type(value) is type(default)


def check(given: dict[str, Any], known: dict[str, Any], place: str) -> None:
    """Raise ValueError for a name that is not known or a value of another type than its default."""
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{place}: no parameter {name!r}; it has {', '.join(known)}")
        if not fits(value, known[name]):
            hint = "; YAML reads 1e-3 as text, write 1.0e-3" if isinstance(value, str) else ""
            hint = "; at least one value is needed" if value == [] else hint
            raise ValueError(
                f"{place}: {name}={value!r} is {type(value).__name__}, the default {known[name]!r} "
                f"is {type(known[name]).__name__}{hint}"
            )


def _defaults(config: type) -> dict[str, Any]:
    """Return a value of the right type for each field; that of `float | None` is a float."""
    hints = get_type_hints(config)
    return {f.name: _example(f.default, hints[f.name]) for f in fields(config)}


def _example(default: Any, hint: Any) -> Any:
    plain = [kind for kind in get_args(hint) if kind in (int, float, str)]
    return plain[0]() if default is None and plain else default


def profile(name: str) -> dict[str, Any]:
    """Return a profile: `about`, `common` settings, parameters per notebook.

    Errors: ValueError for a profile that does not exist (with those that do), for text that is no
    YAML, and for names and types that are not known, with the place.
    """
    path = PROFILES / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"unknown profile {name!r}: choose one of {', '.join(names())}")
    place = f"{PROFILES.name}/{path.name}"
    try:
        found = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{place} is not YAML: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("common"), dict):
        raise ValueError(f"{place}: a section 'common' is needed; copy one from demo.yaml")
    check(found, {"about": "", "common": {}, "notebooks": {}, "expectations": []}, place)
    for place_in, asked in enumerate(found.get("expectations", []), 1):
        check(asked, EXPECTATION, f"{place}, expectation {place_in}")
        missing = {"encoder", "task", "metric"} - asked.keys()
        if missing or asked["metric"] not in ("accuracy", "knn"):
            raise ValueError(
                f"{place}, expectation {place_in}: encoder, task and metric (accuracy or knn) are "
                f"needed, given are {asked}"
            )
    check(found["common"], COMMON, f"{place}, common")
    for part, config in (
        ("victim", methods.Config),
        ("supervised", methods.Config),
        ("surrogate", attacks.Config),
    ):
        check(found["common"].get(part, {}), _defaults(config), f"{place}, {part}")
    watermark(found["common"].get("watermark", {}), f"{place}, watermark")
    listed = found["common"].get("methods", {})
    check(listed, {name: {} for name in methods.METHODS}, f"{place}, methods")
    for name, changes in listed.items():
        check(changes, _defaults(methods.Config), f"{place}, methods, {name}")
    return found


def changed(name: str, changes: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Return a profile's common settings under `changes`, and the victim's method if they name one.

    Errors: ValueError for a setting that no profile has, of another type, or an unknown method.
    """
    known = COMMON | {"method": ""}
    check(changes, known, f"changes of {name}")
    watermark(changes.get("watermark", {}), f"changes of {name}, watermark")
    method = changes.get("method")
    if method not in (None, *methods.METHODS):
        raise ValueError(
            f"method {method!r}: choose one of {', '.join(methods.METHODS)}; {pretrain.READY!r} is a "
            "profile's own victim or none"
        )
    given = {k: v for k, v in changes.items() if k != "method"}
    return SPLITS | profile(name)["common"] | given, method


def watermark(given: dict[str, Any], place: str = "watermark") -> dict[str, Any]:
    """Return how a victim is marked, defaults filled in; {} for one that is not.

    `kind` is "rotation" or "sslguard"; `start` is "victim" (the mark is tuned into the finished one) or
    "scratch"; `images` of 0 are all, `batch` and `lr` of 0 are the recipe's; `data` names the images
    that carry the mark, "" the victim's. Errors: ValueError for a name, type or value not known.
    """
    check(given, WATERMARK, place)
    plan = WATERMARK | given if given else {}
    if plan and (plan["epochs"] < 1 or (plan["kind"], plan["start"]) not in MARKS):
        raise ValueError(
            f"{place}: {given}: kind is rotation or sslguard, start victim or scratch (sslguard: "
            "victim), epochs 1 or more"
        )
    return plan


OF_METHOD = ("temperature", "hidden", "projection", "weights", "inputs")


def config(
    common: dict[str, Any], part: str = "victim", method: str | None = None
) -> methods.Config:
    """Return how a profile trains its "victim" or "supervised" encoder, or a victim by another method."""
    given = common[part] | {"image_size": common["image_size"]}
    own = given.get("method", methods.Config.method)
    if method not in (None, own):  # these belong to a method, not to a victim
        given = {k: v for k, v in given.items() if k not in OF_METHOD}
    given["method"] = method or own
    if given.get("weights") not in (None, "timm"):  # a relative path starts at the repository
        given["weights"] = str(artifacts.ROOT / Path(given["weights"]).expanduser())
    return methods.Config(**given | common.get("methods", {}).get(given["method"], {}))
