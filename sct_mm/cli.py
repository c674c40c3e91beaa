"""What the tools share: how a refusal ends them."""
import errno
import os.path as osp
import pickle
import sys
import traceback
from typing import Callable, Optional

from .engine.config import UserError
from .engine.protection import cause_of, protected_loading

PACKAGE = osp.dirname(osp.abspath(__file__)) + osp.sep


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_refusal(error: Exception) -> bool:
    """Whether a ``raise`` of this package made ``error``: its text is for the
    user. A bug, or what a host or torch found wrong, wants its traceback."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return isinstance(error, UserError) or (
        osp.abspath(frame.filename).startswith(PACKAGE)
        and (frame.line or '').startswith('raise '))


def sentence_of(error: Exception) -> Optional[str]:
    """What to tell the user of ``error``; None for one that wants its
    traceback."""
    if is_refusal(error):
        return str(error)
    if isinstance(error, OSError) and error.errno in _FULL:  # a log, a plot
        return (f'{error}. Make room, and run this again (a training by '
                '--resume).')
    if isinstance(error, pickle.UnpicklingError):
        return f'A file cannot be read ({cause_of(error)}).'
    return None


def cli(main: Callable[[], None]) -> None:
    """Run a tool; what this package refuses ends it with one sentence and
    exit code 2, without a traceback. Nothing is unpickled unprotected."""
    try:
        with protected_loading():
            main()
    except (OSError, TypeError, ValueError, RuntimeError,
            pickle.UnpicklingError) as error:
        sentence = sentence_of(error)
        if sentence is None:
            raise
        print(f'{osp.basename(sys.argv[0])}: {sentence}', file=sys.stderr)
        sys.exit(2)
