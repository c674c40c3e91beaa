"""Compose a detection data set in COCO's format from Fashion-MNIST.

Each image is a cluttered canvas with 2 to 5 photos of clothes of 14 to 64
pixels, in front of fragments of other photos.
"""
import argparse
import json
import os
import os.path as osp

import cv2
import mmengine
import numpy as np
from mmpretrain.datasets import FashionMNIST
from pycocotools import mask as coco_mask
from rich.progress import track

from sct_mm.utils.arguments import check_int
from sct_mm.utils.cli import cli
from sct_mm.utils.errors import UserError

SHORT, LONG = 128, 160  # edges of a canvas, at most
SMALL, LARGE = 14, 64  # edges of a photo on it
VISIBLE = 20  # pixels of a garment are brighter, its background is not


def canvas(rng: np.random.Generator, photos: np.ndarray) -> np.ndarray:
    """A grey canvas (H, W) with fragments of photos and noise."""
    shape = [SHORT, int(rng.integers(SHORT, LONG + 1))]
    rng.shuffle(shape)
    coarse = rng.uniform(20, 120, (5, 5)).astype(np.float32)
    image = cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)
    for _ in range(rng.integers(6, 14)):
        # A fragment has at most 10 of 28 pixels: no garment can be recognised.
        h, w = rng.integers(4, 11, 2)
        y, x = rng.integers(0, 28 - h + 1), rng.integers(0, 28 - w + 1)
        piece = photos[rng.integers(len(photos)), y:y + h, x:x + w]
        piece = np.rot90(piece, rng.integers(4)) * rng.uniform(0.3, 1)
        edge = rng.uniform(1, 3)
        piece = cv2.resize(piece.astype(np.float32), None, fx=edge, fy=edge)
        piece = piece[:shape[0], :shape[1]]
        h, w = piece.shape
        y = rng.integers(0, shape[0] - h + 1)
        x = rng.integers(0, shape[1] - w + 1)
        image[y:y + h, x:x + w] = np.maximum(image[y:y + h, x:x + w], piece)
    return image + rng.normal(0, 8, shape).astype(np.float32)


def overlap(box: tuple[int, ...], others: list[tuple[int, ...]]) -> float:
    """The largest share of a box of ``others`` that ``box`` covers; boxes
    are (x, y, w, h)."""
    x, y, w, h = box
    shares = [0.0]
    for x2, y2, w2, h2 in others:
        wide = max(min(x + w, x2 + w2) - max(x, x2), 0)
        high = max(min(y + h, y2 + h2) - max(y, y2), 0)
        shares.append(wide * high / min(w * h, w2 * h2))
    return max(shares)


def compose(rng: np.random.Generator, photos: np.ndarray,
            labels: np.ndarray) -> tuple[np.ndarray, list[dict]]:
    """An image (H, W), uint8, and its annotations."""
    image = canvas(rng, photos)
    boxes: list[tuple] = []
    annotations = []
    for _ in range(rng.integers(2, 6)):
        index = rng.integers(len(photos))
        # Uniform in the logarithm: as many small ones as large ones.
        edge = round(np.exp(rng.uniform(np.log(SMALL), np.log(LARGE))))
        photo = cv2.resize(photos[index], (edge, edge),
                           interpolation=cv2.INTER_AREA if edge < 28
                           else cv2.INTER_LINEAR)
        mask = photo > VISIBLE
        rows, columns = np.where(mask.any(1))[0], np.where(mask.any(0))[0]
        if not len(rows):
            continue
        crop = np.s_[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
        photo, mask = photo[crop], mask[crop]
        h, w = photo.shape
        for _ in range(20):
            x = int(rng.integers(0, image.shape[1] - w + 1))
            y = int(rng.integers(0, image.shape[0] - h + 1))
            if overlap((x, y, w, h), boxes) < 0.1:
                break
        else:
            continue  # no room is left
        boxes.append((x, y, w, h))
        part = image[y:y + h, x:x + w]
        part[mask] = photo[mask] * rng.uniform(0.6, 1)
        whole = np.zeros(image.shape, np.uint8, order='F')
        whole[y:y + h, x:x + w] = mask
        code = coco_mask.encode(whole)
        annotations.append(dict(
            category_id=int(labels[index]), bbox=[x, y, w, h], iscrowd=0,
            area=int(mask.sum()), segmentation=dict(
                size=code['size'], counts=code['counts'].decode())))
    return np.clip(image, 0, 255).astype(np.uint8), annotations


def write_split(source: str, target: str, split: str, count: int,
                seed: int) -> None:
    """Write ``count`` images to target/split and target/split.json."""
    dataset = FashionMNIST(data_root=source, test_mode=split == 'val',
                           split='test' if split == 'val' else 'train',
                           pipeline=[])
    dataset.full_init()
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    photos = np.stack([info['img'] for info in infos]).reshape(-1, 28, 28)
    labels = np.array([int(info['gt_label']) for info in infos])
    os.makedirs(osp.join(target, split), exist_ok=True)
    entries: list[dict] = []
    annotations: list[dict] = []
    for i in track(range(count), f'{split}: composing {count} images'):
        rng = np.random.default_rng((seed, split == 'val', i))
        image, found = compose(rng, photos, labels)
        name = f'{i:06d}.png'
        cv2.imwrite(osp.join(target, split, name), image)
        entries.append(dict(id=i, file_name=name, height=image.shape[0],
                            width=image.shape[1]))
        annotations += [dict(a, id=len(annotations) + k, image_id=i)
                        for k, a in enumerate(found, 1)]
    categories = [dict(id=i, name=name)
                  for i, name in enumerate(dataset.CLASSES)]
    text = mmengine.dump(
        dict(info=dict(seed=seed, count=count), images=entries,
             annotations=annotations, categories=categories),
        file_format='json', indent=2)
    # Written last and as a whole: it marks the split as complete.
    mmengine.fileio.put(text.encode(), osp.join(target, f'{split}.json'),
                        backend_args=dict(backend='atomic_local'))


def is_complete(target: str, split: str, count: int, seed: int) -> bool:
    path = osp.join(target, f'{split}.json')
    if not osp.exists(path):
        return False
    with open(path) as f:
        return json.load(f)['info'] == dict(seed=seed, count=count)


def make_fashion_det(source: str, target: str, train: int = 3000,
                     val: int = 500, seed: int = 0) -> None:
    """Compose the data set in the folder ``target``.

    Image i of a split depends on (seed, i) only. The training images are
    composed of photos of Fashion-MNIST's training set, the others of its test
    set. A split that is complete is not written again.

    Args:
        source: folder of Fashion-MNIST's files, unpacked.
        train: number of images to train on.
        val: number of images to test on.

    Raises:
        TypeError, ValueError: for a count below 1 or a seed below 0, and if
            Fashion-MNIST is not in ``source``.
    """
    for count_name, count in dict(train=train, val=val).items():
        check_int(count_name, count, 1, 'Leave it out for the default.')
    check_int('seed', seed, 0, 'The default is 0.')
    name = 'train-images-idx3-ubyte'
    if not osp.isfile(osp.join(source, name)):
        raise UserError(
            f'Fashion-MNIST must be in {source!r}, but {name} is not there. '
            'Run tools/dataset_converters/fashion_mnist.py first.')
    for split, count in dict(train=train, val=val).items():
        if is_complete(target, split, count, seed):
            print(f'{target}/{split}: {count} images are there.')
        else:
            write_split(source, target, split, count, seed)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', help='folder of Fashion-MNIST')
    parser.add_argument('target', help='folder for the data set')
    parser.add_argument('--train', type=int, default=3000,
                        help='number of images to train on')
    parser.add_argument('--val', type=int, default=500,
                        help='number of images to test on')
    parser.add_argument('--seed', type=int, default=0)
    return parser.parse_args()


def main() -> None:
    make_fashion_det(**vars(parse_args()))


if __name__ == '__main__':
    cli(main)
