"""A user's own prompt template, selection policy or padding strategy, named `module:object`.

    models:  template: my_rules:chatml          a PromptTemplate
    arms:    policy: my_rules:shortest          a function, see sampling.choose
             strategy: my_rules:pairs           a function, see packing.plan_rows

The module is installed or lies in a folder on PYTHONPATH. Its file is an input of every stage that uses it: changing it
makes those stages anew. `docs/extending.md` has examples.

The package's own public names are looked up here too, when they are first used.
"""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeGuard

from codeact_lib.errors import ProfileError

# A name, and no registration, because a run is many processes, one kernel a notebook and one process a training: each
# imports the module itself.
_OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_own(name: object) -> TypeGuard[str]:
    """Whether `name` is written `module:object`, and means something outside the package."""
    return isinstance(name, str) and _OWN.fullmatch(name) is not None


def load_own(name: str) -> Any:
    """The object that `module:object` names; `ProfileError` saying how to make it importable where it is not."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ProfileError(
            f"{name} cannot be imported ({error}): {module} must be installed, or its folder on PYTHONPATH, and hold "
            f"{attribute}."
        ) from error


def own_files(*names: object) -> dict[str, Path]:
    """`{"extension my_rules": path}`: the files that hold those of `names` that are a user's own."""
    files = {}
    for name in filter(is_own, names):
        load_own(name)  # so that a plan finds a missing module before anything is run
        module = name.partition(":")[0]
        file = sys.modules[module].__file__  # None of a namespace or a module that lives in memory
        if file:
            files[f"extension {module}"] = Path(file)
    return files


def on_first_use(package: str, homes: Mapping[str, Sequence[str]]) -> tuple[list[str], Callable[[str], Any]]:
    """`__all__` and `__getattr__` of a package that imports its names on first use; `homes`: module -> its names."""
    home = {name: module for module, names in homes.items() for name in names}

    def look_up(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{home[name]}"), name)

    return sorted(home), look_up
