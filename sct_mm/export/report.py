"""Print the manifest of exported files as a table."""
from rich.table import Table

from ..utils.cli import console_for
from .formats import WEIGHTS


def rows_of(manifest: dict) -> list[dict]:
    """The rows of the table: each file, or each size of the file for any
    size."""
    return [{**file, **row} for file in manifest['files']
            for row in file.get('sizes', [{}])]


def make_table(manifest: dict) -> Table:
    """The table of a manifest: a row for each file."""
    graph = manifest['format'] not in WEIGHTS
    table = Table(title=f'{manifest["label"]} as {manifest["format"]}')
    names = ['size', 'file', 'MB', 'part', 'norms', 'largest\ndifference']
    if graph:
        names += ['latency\nms', 'stock\nms', 'file / stock\n(quartiles)']
    for name in names:
        table.add_column(name, justify='left' if name in ('file', 'part')
                         else 'right')
    for file in rows_of(manifest):
        cells = [str(file['size']), file['file'], f'{file["bytes"] / 1e6:.2f}',
                 file['part'], str(file['norms']),
                 f'{file["difference"]:.1e}' if graph else 'none: to the bit']
        if 'latency_ratio' in file:
            low, middle, high = file['latency_ratio']
            cells += [f'{file["latency_ms"]:.2f}',
                      f'{file["stock_latency_ms"]:.2f}',
                      f'{middle:.2f} ({low:.2f}-{high:.2f})']
        table.add_row(*cells)
    return table


def make_int8_table(manifest: dict) -> Table:
    """How each int8 file compares with the float file."""
    table = Table(title=f'{manifest["label"]} as int8, beside the float file')
    for name in ('size', 'MB', 'float MB', 'top-1', 'float top-1',
                 'expected\nloss', 'agreement', 'of sure', 'KL',
                 'float\nconvolutions', 'ms',
                 'float ms', 'int8 / float\n(quartiles)'):
        table.add_column(name, justify='right')
    for file in manifest['files']:
        found = file['int8']
        before, after = found['top1'] or (float('nan'), ) * 2
        low, middle, high = found['latency_ratio']
        table.add_row(
            str(file['size']), f'{file["bytes"] / 1e6:.2f}',
            f'{found["float_bytes"] / 1e6:.2f}',
            *('-' if each != each else f'{each:.2f}' for each in (
                after, before, found['expected_loss'], found['agreement'],
                found['sure_agreement'])),
            f'{found["kl"]:.4f}', str(found['float_convolutions']),
            f'{found["latency_ms"]:.2f}', f'{found["float_latency_ms"]:.2f}',
            f'{middle:.2f} ({low:.2f}-{high:.2f})')
    return table


def print_manifest(manifest: dict) -> None:
    """Print what :func:`~sct_mm.apis.export` returned: a table, how the files
    were compared, and the notes."""
    int8, images = manifest['files'][0].get('int8'), manifest['images']
    table = make_int8_table(manifest) if int8 else make_table(manifest)
    console = console_for(table)
    console.print(table)
    if int8:
        text = (f'Calibrated on {int8["calibration"]} training images; the '
                f'answers are those for {int8["images"]} images of the test '
                'set. Expected loss: the share of top-1, in %, that the '
                'changed answers cost by the probabilities of the float '
                'file. '
                'Latencies are of one image on one CPU thread, by turns.')
    elif manifest['format'] in WEIGHTS:
        text = (f'Each file, read back, gives on {images} real images '
                'what the trained network gives.')
    else:
        text = (f'The difference is the largest on {images} real images, '
                'as one batch and alone, as a share of the largest output. '
                'Latencies are of one image on one CPU thread, by turns: '
                "the file's, and that of the network in torch with its "
                'norms.')
    for file in manifest['files']:
        if file['size'] == 'any':
            text += (f' The file has {file["bytes"] / 1e6:.2f} MB: the '
                     'weights of one size take '
                     f'{file["weights_bytes"] / 1e6:.2f}, and the parameters '
                     'that scales have of their own '
                     f'{file["rows_bytes"] / 1e6:.2f}.')
            if manifest['format'] == 'onnx':
                text += (' Latencies are those of a session of fixed shape, '
                         'as sct_mm.runtime opens it; with dynamic shapes '
                         'the file is slower.')
    for line in (text, *dict.fromkeys(manifest['notes'])):
        console.print(line, highlight=False, soft_wrap=True)
