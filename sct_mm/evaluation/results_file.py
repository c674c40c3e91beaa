"""Read back the results that tools/test.py wrote, and check their form."""
import json
import math
import os.path as osp
import shutil
import time
from typing import Any

from ..utils.errors import UserError

_NUMBERS = ('scale', 'gflops', 'latency_ms')
# Metrics that count errors, so that less is better, by the last part of their
# name, to which a host may add more behind a `_`.
_ERRORS = (
    'NME', 'EPE', 'MPJPE', 'P-MPJPE', 'N-MPJPE', 'MRRPE',  # mmpose
    'abs_rel', 'sq_rel', 'rmse', 'log10', 'silog',  # mmseg: depth
    'mMR', 'IDSW', 'FP', 'FN', 'Frag',  # mmdet: CrowdHuman, tracking
    'MdR', 'MnR')  # mmaction2: retrieval


def _is_number(value: Any) -> bool:
    """Also NaN."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_cost(value: Any) -> bool:
    return _is_number(value) and 0 <= value < float('inf')


def _wrong(data: Any) -> str | None:
    """The part of ``data`` that is not as tools/test.py writes it, or None."""
    models = data.get('models') if isinstance(data, dict) else None
    if not isinstance(models, list) or not models:
        return 'has no `models`'
    for index, model in enumerate(models):
        where = f'models[{index}]'
        for name in ('label', 'config', 'checkpoint'):
            if not isinstance(model, dict) or not isinstance(
                    model.get(name), str):
                return f'has no {where}.{name}'
        if not isinstance(model.get('cfg_options') or {}, dict):
            return f'has no dict {where}.cfg_options'
        rows = model.get('rows')
        if not isinstance(rows, list) or not rows:
            return f'has no {where}.rows'
        for row in rows:
            if not isinstance(row, dict) or not isinstance(
                    row.get('metrics'), dict):
                return f'has no metrics in {where}.rows'
            for name in _NUMBERS:
                if not _is_cost(row.get(name)):
                    return f'has no number {name} in {where}.rows'
            for name, value in row['metrics'].items():
                if value is not None and not _is_number(value):
                    return f'has no number {name} in {where}.rows'
            if not isinstance(row['scale'], int) or not row['scale']:
                return f'has a scale {row["scale"]!r} in {where}.rows'
    return None


def numbers_of(metrics: dict[str, float | None]) -> dict[str, float]:
    """``metrics`` of a result's file, in which NaN is null."""
    return {name: math.nan if value is None else value
            for name, value in metrics.items()}


def read_result(path: str) -> dict:
    """Read ``device`` and ``models`` from ``path``, a scales.json of
    tools/test.py; each model has ``label``, ``config``, ``checkpoint`` and
    ``rows``, one a size. Other entries are not checked. A metric that is no
    number is null in the file, and NaN here.

    Raises:
        UserError: for a file that is missing, or of another kind or version.
    """
    if not osp.isfile(path):
        raise UserError(f'The result must be a file, but got {path!r}. Name '
                        'the scales.json that tools/test.py wrote.')
    try:
        with open(path, encoding='utf-8') as file:
            data = json.load(file)
    except ValueError as error:
        raise UserError(f'The result {path!r} is no JSON ({error}). Name the '
                        'scales.json that tools/test.py wrote.') from None
    wrong = _wrong(data)
    if wrong:
        raise UserError(f'The result {path!r} {wrong}: it is of another kind '
                        'or version. Test again by tools/test.py, and name '
                        'its scales.json.')
    for model in data['models']:
        for row in model['rows']:
            row['metrics'] = numbers_of(row['metrics'])
    return data


def _tested(models: list[dict]) -> set[tuple[str, int]]:
    """The checkpoints and sizes of the ``models`` of a result."""
    return {(model['checkpoint'], row['scale'])
            for model in models for row in model['rows']}


def keep_earlier(path: str, models: list[dict]) -> str | None:
    """Copy the result at ``path``, named by the time of its writing, if it
    has a checkpoint or a size that ``models``, which replace it, have not.

    Returns:
        str: the path of the copy; None if nothing would be lost.
    """
    try:
        earlier = read_result(path)['models']
    except UserError:  # there is none, or it is of another version
        return None
    if _tested(earlier) <= _tested(models):
        return None
    base, ending = osp.splitext(path)
    written = time.localtime(osp.getmtime(path))
    kept = f'{base}-{time.strftime("%Y%m%d_%H%M%S", written)}{ending}'
    shutil.copy2(path, kept)
    return kept


def rows_of(result: dict, checkpoint: str, path: str) -> list[dict]:
    """The rows of the model in ``result`` that was tested from
    ``checkpoint``.

    Raises:
        UserError: if none was.
    """
    wanted = osp.realpath(checkpoint)
    for model in result['models']:
        if osp.realpath(model['checkpoint']) == wanted:
            return model['rows']
    tested = ', '.join(repr(m['checkpoint']) for m in result['models'])
    raise UserError(f'The result {path!r} must be of {checkpoint!r}, but is '
                    f'of {tested}. Test that checkpoint, or leave the result '
                    'out.')


def metric_names(rows: list[dict]) -> list[str]:
    """Names of the metrics of ``rows``, in the order of the evaluators."""
    return list(dict.fromkeys(name for row in rows for name in row['metrics']))


def counts_errors(name: str) -> bool:
    """Whether less of the metric ``name`` is better, as of a distance to
    keypoints."""
    name = name.rpartition('/')[2]
    return name in _ERRORS or name.startswith(
        tuple(f'{error}_' for error in _ERRORS))


def quality_names(models: list[dict]) -> list[str]:
    """:func:`metric_names` of all ``models``, without losses and divergences
    (``kl``): metrics that tell how good a network is, by which less is better
    if they :func:`count errors <counts_errors>`. mmengine's CheckpointHook
    tells losses by their name, too."""
    rows = [row for model in models for row in model['rows']]
    return [name for name in metric_names(rows)
            if 'loss' not in name and name.rpartition('/')[2] != 'kl']
