"""Building a network whose config comes from others, who may name no code."""
import sys
import threading
from contextlib import contextmanager
from typing import Any, Iterator

import mmengine.registry.registry as host
from mmengine import registry
from torch import nn

from ..utils.errors import UserError

_LOCK = threading.RLock()


def is_registered(found: Any) -> bool:
    """Whether a registry of any host holds ``found``, or could, as a class
    of modules."""
    if isinstance(found, type) and issubclass(found, nn.Module):
        return True
    roots = [each for each in vars(registry).values()
             if isinstance(each, registry.Registry)]
    while roots:
        each = roots.pop()
        if any(found is kind for kind in each.module_dict.values()):
            return True
        roots.extend(each.children.values())
    return False


@contextmanager
def registered_only() -> Iterator[None]:
    """Within, a config's ``type`` is something registered.

    mmengine takes the path of any function or class of any installed package
    as well, as ``subprocess.Popen``, and calls it. Paths of what is
    registered, and of a torch module, stay: `read_base` configs name classes
    so. Other threads build as ever.

    Raises:
        UserError: if something else was named.
    """
    refused, own = [], threading.get_ident()

    def get_registered(name: str) -> Any:
        if threading.get_ident() != own:
            return before(name)
        # To import a package runs its code.
        known = name.partition('.')[0] in sys.modules
        found = before(name) if known else None
        if found is not None and is_registered(found):
            return found
        refused.append(name)
        return None

    with _LOCK:
        before = host.get_object_from_string
        host.get_object_from_string = get_registered
        try:
            yield
        except Exception as error:  # each builder has its own
            if not refused:
                raise
            raise UserError(
                'A `type` of the config must be a module, or registered, but '
                f'got {refused[0]!r}. Import the package that registers it '
                'first, or take a config that you trust.') from error
        finally:
            host.get_object_from_string = before
