"""Tables of names: every list a user can choose from (optimizers, meters, models) is a `Registry`.

A registry maps a name to an entry and a line of description, refuses unknown names with the nearest
match, and loads `module:attribute` plug-ins, only when a person named them.
"""

import hashlib
import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

from jaxenergy.errors import UsageError, unknown_value

Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """Entries by name.

    Args:
        what: what an entry is called on the command line, e.g. `--optimizer`; used in errors.
        hint: a sentence for whoever names no entry.
    """

    def __init__(self, what: str, hint: str = ""):
        self.what = what
        self._hint = hint
        self._entries: dict[str, tuple[Entry, str]] = {}

    def add(self, name: str, entry: Entry, description: str) -> Entry:
        """Adds an entry.

        Args:
            name: the name users type.
            entry: what it stands for.
            description: one line for `--list`.

        Returns:
            The entry.

        Raises:
            UsageError: the name is taken.
        """
        if name in self._entries:
            raise UsageError(f"{self.what}={name} is registered already; choose another name.")
        self._entries[name] = (entry, description)
        return entry

    def __getitem__(self, name: str) -> Entry:
        if name not in self._entries:
            raise unknown_value(self.what, name, self._entries, self._hint)
        return self._entries[name][0]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def describe(self, name: str) -> str:
        """The description line of an entry."""
        self[name]  # refuses an unknown name
        return self._entries[name][1]


def load_attribute(spec: str, what: str) -> object:
    """Imports `module:attribute`, as a user names a plug-in.

    Args:
        spec: the module's dotted path and the attribute, e.g. `my_package.my_module:my_optimizer`.
        what: the flag it came from, for errors.

    Returns:
        The attribute.

    Raises:
        UsageError: the module cannot be imported or has no such attribute.
    """
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise UsageError(f"{what}={spec} is not of the form module:attribute.")
    if module_name.endswith(".py"):
        dotted = module_name.removesuffix(".py").replace("/", ".")
        raise UsageError(f"{what}={spec} names a file.\nAllowed: its module, {dotted}:{attribute}.")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may fail in any way; the user is told which
        raise UsageError(
            f"{what}={spec}: importing {module_name!r} failed: {type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, attribute):
        public = [name for name, value in vars(module).items() if callable(value)]
        names = [f"{module_name}:{name}" for name in public if not name.startswith("_")]
        raise unknown_value(what, spec, names)
    return getattr(module, attribute)


def read_source(spec: str) -> dict[str, str] | None:
    """The file of a plug-in's module, by which its code is told from other code of that name.

    What the module imports is not looked at.

    Args:
        spec: as for `load_attribute`.

    Returns:
        `file`, its name, and `digest`, `sha256:` and 64 hexadecimal digits; None where there is no
        such module, or none with a file that can be read.
    """
    try:
        module = importlib.util.find_spec(spec.partition(":")[0])
        if module is None or module.origin is None or not module.has_location:
            return None
        path = Path(module.origin)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except Exception:  # a package around the module may fail in any way
        return None
    return {"file": path.name, "digest": f"sha256:{digest}"}
