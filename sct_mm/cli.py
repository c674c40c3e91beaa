"""What the tools share: how a refusal ends them."""
import os.path as osp
import sys
import traceback
from typing import Callable

from .engine.config import UserError

PACKAGE = osp.dirname(osp.abspath(__file__)) + osp.sep


def is_refusal(error: Exception) -> bool:
    """Whether a ``raise`` of this package made ``error``: its text is for the
    user. A bug, or what a host or torch found wrong, wants its traceback."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return isinstance(error, UserError) or (
        osp.abspath(frame.filename).startswith(PACKAGE)
        and (frame.line or '').startswith('raise '))


def cli(main: Callable[[], None]) -> None:
    """Run a tool; what this package refuses ends it with one sentence and
    exit code 2, without a traceback."""
    try:
        main()
    except (TypeError, ValueError, RuntimeError) as error:
        if not is_refusal(error):
            raise
        print(f'{osp.basename(sys.argv[0])}: {error}', file=sys.stderr)
        sys.exit(2)
