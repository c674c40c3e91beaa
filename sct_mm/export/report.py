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


def print_manifest(manifest: dict) -> None:
    """Print what :func:`~sct_mm.apis.export` returned: a table, how the files
    were compared, and the notes."""
    table, images = make_table(manifest), manifest['images']
    console = console_for(table)
    console.print(table)
    if manifest['format'] in WEIGHTS:
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
                     'weights of one size have '
                     f'{file["weights_bytes"] / 1e6:.2f}, and what each scale '
                     f'has of its own has {file["rows_bytes"] / 1e6:.2f}.')
    for line in (text, *dict.fromkeys(manifest['notes'])):
        console.print(line, highlight=False, soft_wrap=True)
