"""Parts of every tool: options, launchers, warnings, and errors that end it
with one sentence."""
import argparse
import contextlib
import errno
import os
import os.path as osp
import pickle
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from urllib.error import URLError

import torch
from mmengine.config import DictAction
from mmengine.registry import build_functions
from rich.console import Console
from rich.table import Table

from .errors import EMPTY, UserError
from .safe_load import cause_of, protected_loading

PACKAGE = osp.dirname(osp.dirname(osp.abspath(__file__))) + osp.sep
# Warnings about the hosts' own code, which the user of a tool cannot fix.
HOSTS_OWN = (
    'The given NumPy array is not writable',  # mmpretrain's reader of MNIST
    'torch.utils.checkpoint: ',  # mmpretrain's with_cp
    'torch.meshgrid: ',  # mmdet's points
    'Fail to import ``MultiScaleDeformableAttention``',  # without mmcv's ops
    'Failed to add .*LocalVisBackend',  # a visualizer without a folder
    'pkg_resources is deprecated',  # mmengine
    '.*torch.get_autocast_gpu_dtype',  # mmengine's autocast
    '.* is multi-threaded, use of fork',  # torch's loaders, Python 3.12
    "<class '.*'> instance named of",  # mmdet's visualizer, built again
    '``build_loss`` would be deprecated',  # mmseg's heads
    'The draw is False, it means',  # mmseg's SegVisualizationHook
)
# {launcher: a variable that it sets, and that mmengine needs}
_SET_BY = dict(pytorch='RANK', slurm='SLURM_PROCID',
               mpi='OMPI_COMM_WORLD_LOCAL_RANK')
# Files in which torch and the hosts stack images to a batch.
_STACKS = ('collate.py', 'data_preprocessor.py')
# mmengine's BaseDataset, as it takes a part of its images.
_SUBSETS = ('_get_unserialized_subset', '_get_serialized_subset')
# torch's batch normalization, of a single value.
_NO_VARIANCE = 'Expected more than 1 value per channel'
# Errors of a disk that is full.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Settings(DictAction):
    """mmengine's DictAction, which fails on a word without ``=`` or name, and
    removes the spaces of a path as it does those of a list."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        for value in values:
            if '=' not in value or not value.partition('=')[0].strip():
                parser.error(f'{option_string} must be KEY=VALUE, but got '
                             f'{value!r}. Write e.g. '
                             'train_cfg.max_epochs=1.')
        super().__call__(parser, namespace, values, option_string)
        for name, _, text in (value.partition('=') for value in values):
            text = text.strip('\'" ')
            if ' ' in text and ',' not in text and text[0] not in '[(':
                getattr(namespace, self.dest)[name] = text


def add_cfg_options(parser: argparse.ArgumentParser,
                    what: str = 'settings that override the config') -> None:
    """Add the option by which OpenMMLab's tools change a config."""
    parser.add_argument('--cfg-options', nargs='+', action=_Settings,
                        metavar='KEY=VALUE', help=what)


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """Add the options of mmengine's launchers."""
    parser.add_argument(
        '--launcher', default='none',
        choices=['none', 'pytorch', 'slurm', 'mpi'], help='job launcher')
    # torch.distributed.launch passes this one, torchrun sets LOCAL_RANK.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def parse_launched(parser: argparse.ArgumentParser,
                   argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse ``argv``, and put the local rank where mmengine looks for it."""
    args = parser.parse_args(argv)
    variable = _SET_BY.get(args.launcher)
    if variable and variable not in os.environ:
        parser.error(f'--launcher {args.launcher} needs a start by that '
                     f'launcher, which sets {variable}, but that is not set. '
                     'Start this by it (pytorch: torchrun), or leave '
                     '--launcher out for one process.')
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def one_sentence(message, category, filename, lineno, line=None) -> str:
    """A warning as the tools show it, without the line of code."""
    text = re.sub(r' \(Triggered internally at .*', '', str(message))
    return f'{osp.basename(sys.argv[0])}: warning: {text}\n'


@contextlib.contextmanager
def warnings_for_users() -> Iterator[None]:
    """Show warnings as sentences, and hide those for developers. If -W or
    PYTHONWARNINGS is set, show what it asks for, in full."""
    before = warnings.formatwarning
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.formatwarning = one_sentence
            for kind in (FutureWarning, SyntaxWarning):
                warnings.simplefilter('ignore', kind)
            for text in HOSTS_OWN:
                warnings.filterwarnings('ignore', text)
        try:
            yield
        finally:
            warnings.formatwarning = before


def _raised_at(error: Exception) -> traceback.FrameSummary:
    return traceback.extract_tb(error.__traceback__)[-1]


def is_refusal(error: Exception) -> bool:
    """Whether a ``raise`` of this package made ``error``: then its text is for
    the user. A bug, or an error of a host or of torch, needs its traceback."""
    frame = _raised_at(error)
    return isinstance(error, UserError) or (
        osp.abspath(frame.filename).startswith(PACKAGE)
        and (frame.line or '').startswith('raise '))


def _refused_part(error: Exception) -> str:
    """Why a registry, or the constructor that it called, refused a part of
    the config; '' if ``error`` is another, such as a bug in that class."""
    frames = traceback.extract_tb(error.__traceback__)
    calls = [index for index, frame in enumerate(frames)
             if frame.filename == build_functions.__file__]
    if not calls or not error.args:
        return ''
    last = frames[-1]
    constructor = calls[-1] == len(frames) - 2 or last.name == '__init__'
    raised = (last.line or '').startswith(('raise ', 'assert '))
    if calls[-1] < len(frames) - 1 and not (
            constructor and raised
            and not osp.abspath(last.filename).startswith(PACKAGE)):
        return ''
    return re.split(r'[.] [A-Z]|\n', str(error.args[0]))[0].rstrip('.')


def sentence_of(error: Exception) -> str | None:
    """The sentence for the user about ``error``; None if it needs its
    traceback."""
    if is_refusal(error):
        return str(error)
    if isinstance(error, pickle.UnpicklingError):
        return f'A file cannot be read ({cause_of(error)}).'
    if isinstance(error, OSError) and error.errno in _FULL:  # a log, a plot
        return (f'{error}. Make room, and run this again (a training by '
                '--resume).')
    if isinstance(error, URLError):  # of a data set that loads itself
        return (f'A download failed ({error.reason}). Connect to the network, '
                'or put the files where the config names them.')
    if isinstance(error, OSError) and error.filename is not None:
        return (f'{str(error.filename)!r} cannot be used ({error.strerror}). '
                'Name another in the command or the config, or fix it.')
    # mmengine joins the annotations of a data set, be there none.
    if _raised_at(error).name == '_serialize_data':
        return EMPTY
    if isinstance(error, (IndexError, AssertionError)) and _raised_at(
            error).name in _SUBSETS:
        return ('The list of `indices` of a data set must be of images that '
                'it has, but one is beyond them. Leave it out for all '
                'images.')
    if isinstance(error, ValueError) and str(error).startswith(_NO_VARIANCE):
        return ('A batch must have two images or more where a layer sees one '
                f'pixel, but one has not ({error}). Set drop_last=True in the '
                '`train_dataloader`, or a larger batch_size.')
    cause = _refused_part(error)
    if cause:
        return (f'A part of the config cannot be built ({cause}). Fix it '
                'there, or name the package that registers it in its '
                '`custom_imports`.')
    shapes = re.search('stack expects each tensor to be equal size.*',
                       str(error))
    # A network may stack its outputs, too.
    if isinstance(error, RuntimeError) and shapes and (
            'DataLoader worker' in str(error) or osp.basename(
                _raised_at(error).filename) in _STACKS):
        return ('The images of a batch must have one shape, but '
                f'{shapes[0]}. Crop or pad them in the pipeline.')
    return None


def cli(main: Callable[[], None]) -> None:
    """Run a tool. If this package refuses something, the tool ends with one
    sentence and exit code 2, without a traceback. Checkpoints are loaded under
    :func:`protected_loading`."""
    try:
        with protected_loading(), warnings_for_users():
            main()
    except (AssertionError, ImportError, OSError, LookupError, TypeError,
            ValueError, RuntimeError, pickle.UnpicklingError) as error:
        sentence = sentence_of(error)
        if sentence is None:
            raise
        print(f'{osp.basename(sys.argv[0])}: {sentence}', file=sys.stderr)
        sys.exit(2)


def console_for(*tables: Table) -> Console:
    """A console as wide as the terminal, or in a file or a pipe as wide as
    the tables. Brackets in a path or a name are no markup."""
    plain = partial(Console, markup=False, emoji=False)
    console = plain()
    if console.is_terminal:
        return console
    room = plain(width=1000)
    return plain(width=max(80, *(room.measure(table).maximum
                                 for table in tables)))


def device_name() -> str:
    """The name of the GPU, or the CPU with its number of threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f'CPU, {torch.get_num_threads()} threads'
