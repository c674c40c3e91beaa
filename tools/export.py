"""Write one scale of a trained network, or each, as an ordinary file."""
import argparse

from sct_mm.apis import export
from sct_mm.export.formats import FORMATS
from sct_mm.export.network import PARTS
from sct_mm.export.report import report
from sct_mm.utils.cli import add_cfg_options, cli


def size_of(text: str) -> int | str:
    return text if text == 'all' else int(text)


size_of.__name__ = 'size'  # argparse names it in its refusal


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of the config')
    parser.add_argument('checkpoint', help='path of the checkpoint')
    parser.add_argument(
        '--size', type=size_of, required=True, metavar='PIXELS|all',
        help='which size; all: each trained scale')
    parser.add_argument(
        '--format', choices=list(FORMATS), default='pth',
        help='pth and safetensors: weights that the stock network takes; '
        'onnx, torchscript and pt2: a graph (default: pth)')
    parser.add_argument(
        '--out', required=True, metavar='FILE',
        help='the file; with --size all, a folder for the files and '
        'manifest.json')
    parser.add_argument(
        '--part', choices=PARTS,
        help='of a graph: the network, or its features (backbone and neck); '
        'default: the network where it runs on images alone')
    parser.add_argument(
        '--no-fuse', action='store_true',
        help='keep the norms of a graph; default: fused into convolutions')
    parser.add_argument(
        '--softmax', action='store_true',
        help="a classifier's graph gives scores; default: logits")
    parser.add_argument(
        '--prefix', default='', metavar='NAME',
        help='weights of this module alone, by its own names: backbone, or '
        'as timm has them, backbone.timm_model')
    parser.add_argument(
        '--images', type=int, default=8,
        help='real images to compare outputs on (default: 8)')
    parser.add_argument(
        '--tolerance', type=float, default=1e-4,
        help="a graph's largest difference, as a share of the largest output "
        '(default: 1e-4)')
    parser.add_argument(
        '--result', metavar='JSON',
        help="a test's scales.json, whose metrics go into the manifest")
    parser.add_argument(
        '--force', action='store_true', help='replace files that exist')
    add_cfg_options(parser)
    return parser.parse_args(argv)


def main() -> None:
    args = parse_args()
    manifest = export(
        args.config, args.checkpoint, args.size, args.out, args.format,
        part=args.part, fuse=not args.no_fuse, softmax=args.softmax,
        prefix=args.prefix, images=args.images, tolerance=args.tolerance,
        result=args.result, force=args.force, cfg_options=args.cfg_options)
    report(manifest)


if __name__ == '__main__':
    cli(main)
