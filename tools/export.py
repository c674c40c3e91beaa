"""Write one size of a trained network, each trained one, or all in one, as an
ordinary file that runs without sct_mm."""
import argparse

from sct_mm.apis import export
from sct_mm.apis.export import CALIBRATION
from sct_mm.export import FORMATS, PARTS, print_manifest
from sct_mm.utils.cli import add_cfg_options, cli


def size_of(text: str) -> int | str:
    """The value of --size."""
    return text if text in ('all', 'any') else int(text)


size_of.__name__ = 'size'  # by which argparse refuses a value


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of the config')
    parser.add_argument('checkpoint', help='path of the checkpoint, or of a '
                        'work directory: its newest whole one, not its best')
    parser.add_argument(
        '--size', type=size_of, required=True, metavar='PIXELS|all|any',
        help='the size of the test images; all: a file for each size that a '
        'scale serves; any: one graph (onnx, pt2) for every size')
    parser.add_argument(
        '--format', choices=list(FORMATS), default='pth',
        help='pth and safetensors: weights that the stock network loads; '
        'onnx, torchscript and pt2: a graph; default: pth')
    parser.add_argument(
        '--out', required=True, metavar='FILE',
        help='the file; with --size all, a folder for the files and '
        'manifest.json')
    parser.add_argument(
        '--part', choices=PARTS,
        help='which part becomes a graph: the network, or its features '
        '(backbone and neck); default: the network if it runs on images '
        'alone')
    parser.add_argument(
        '--no-fuse', action='store_true',
        help='keep the norms of a graph; default: fuse them into '
        'convolutions')
    parser.add_argument(
        '--softmax', action='store_true',
        help="make a classifier's graph give scores; default: logits")
    parser.add_argument(
        '--prefix', default='', metavar='NAME',
        help='write the weights of this module alone, by its own names: '
        'backbone, or backbone.timm_model for timm')
    parser.add_argument(
        '--images', type=int, metavar='N',
        help='how many images of the test set to compare outputs on; '
        'default: 8, with --int8 512')
    parser.add_argument(
        '--tolerance', type=float,
        help='the largest difference that a graph may have, as a share of the '
        'largest output; default: 1e-4; with --int8, the most points of '
        'top-1, or without labels % of the top-1 that the float file expects, '
        'that it may lose; default: 1')
    parser.add_argument(
        '--int8', action='store_true',
        help="make a classifier's onnx compute in int8, calibrated on "
        'training images')
    parser.add_argument(
        '--calibration', type=int, default=CALIBRATION, metavar='N',
        help=f'how many training images --int8 takes; default: {CALIBRATION}')
    parser.add_argument(
        '--result', metavar='JSON',
        help='scales.json of tools/test.py, whose metrics go into the '
        'manifest')
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
        int8=args.int8, calibration=args.calibration, result=args.result,
        force=args.force, cfg_options=args.cfg_options)
    print_manifest(manifest)


if __name__ == '__main__':
    cli(main)
