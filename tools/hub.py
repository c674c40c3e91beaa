"""Write a trained network with all its scales as a folder, to share on a
hub."""
import argparse
import shlex

from sct_mm.apis import save_pretrained
from sct_mm.utils.cli import add_cfg_options, cli


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of the config')
    parser.add_argument('checkpoint', help='path of the checkpoint, or of a '
                        'work directory: its newest whole one, not its best')
    parser.add_argument(
        '--out', required=True, metavar='FOLDER',
        help='folder for config.json and model.safetensors')
    parser.add_argument(
        '--force', action='store_true', help='replace files that exist')
    add_cfg_options(parser)
    return parser.parse_args(argv)


def main() -> None:
    args = parse_args()
    document = save_pretrained(args.config, args.checkpoint, args.out,
                           force=args.force, cfg_options=args.cfg_options)
    scales = document['scales'] or ['no scales of its own']
    print(f'{document["label"]} ({", ".join(map(str, scales))}) is in '
          f'{args.out}: read back, it is the trained network to the bit.')
    print(f"sct_mm.apis.from_pretrained({args.out!r}) loads it; `hf upload "
          f"OWNER/NAME {shlex.quote(args.out)}` puts it on a hub.")


if __name__ == '__main__':
    cli(main)
