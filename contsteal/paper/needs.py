"""Which stored data a profile and its notebooks read, what can be fetched, and where it is."""

from contsteal import data
from contsteal.data import torchsets
from contsteal.lab import profiles
from contsteal.paper.plan import notebooks, parameters

FETCHED = tuple(name for name in torchsets.NAMES if name not in torchsets.FOLDERS)


def _needs(profile: str) -> dict[str, set[str]]:
    """Return the stored data sets of a profile and its notebooks, with the splits that are read."""
    common = profiles.SPLITS | profiles.profile(profile)["common"]
    tasks = [common.get("data")]
    for stem in notebooks():
        for value in parameters(stem, profile).values():
            tasks += _flat(value)
    tasks = [t.partition("@")[::2] if isinstance(t, str) and "@" in t else t for t in tasks]
    found = {name: set(data.SPLITS) for name in tasks if _is_stored(name)}
    for name, split, *_ in (t for t in tasks if isinstance(t, list | tuple)):
        if _is_stored(name):
            found.setdefault(name, set()).add(split)
    for name, split in (("data", "train_split"), ("query_data", "query_split")):
        if _is_stored(common.get(name)):
            found.setdefault(common[name], set()).add(common[split])
    return {name: {part for s in splits for part in s.split("+")} for name, splits in found.items()}


def _flat(value: object) -> list[object]:
    """Return the values in lists and tables of a parameter; records, lists in lists, stay whole."""
    if isinstance(value, dict):
        return [v for part in value.values() for v in _flat(part)]
    return value if isinstance(value, list) else [value]


def _is_stored(name: object) -> bool:
    paths = tuple(f"{kind}:" for kind in data.PATHS)
    return isinstance(name, str) and (name in torchsets.NAMES or name.startswith(paths))


def datasets(profile: str) -> list[str]:
    """Return the data sets of a profile and its notebooks that can be fetched, and must be."""
    needs = _needs(profile)
    return [name for name in FETCHED if name in needs]


def files(profile: str) -> list[tuple[str, torchsets.File]]:
    """Return the files of these data sets, each with its set's name; ValueError for a wrong split."""
    names, needs = datasets(profile), _needs(profile)
    for name in names:
        for split in needs[name]:
            torchsets.check(name, split)
    return [(name, file) for name in names for file in torchsets.used(name, *needs[name])]


def unfetched(profile: str) -> dict[str, tuple[str, bool]]:
    """Say of each data set of a profile that nothing fetches where it is or what to do, and if it is."""
    size = profiles.profile(profile)["common"].get("image_size", 32)
    found = {}
    for name, splits in _needs(profile).items():
        if name in FETCHED:
            continue
        try:
            places = [data.locate(name, split, size) for split in sorted(splits)]
            found[name] = f"present in {places[0]}", True
        except (ValueError, OSError) as error:  # a folder or disk that cannot be read
            found[name] = f"missing: {error}", False
    return found
