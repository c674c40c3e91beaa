"""Write about ten images in the format that each host reads."""
import json

import cv2
import numpy as np
from mmdet.datasets import CocoDataset

TRAINED, TESTED = 6, 4  # images


def _image(generator, height, width):
    """Noise of a low frequency, so that a resize leaves something of it."""
    coarse = generator.integers(0, 256, (height // 8, width // 8, 3))
    return cv2.resize(coarse.astype(np.uint8), (width, height),
                      interpolation=cv2.INTER_LINEAR)


def _rectangle(generator, height, width):
    """(x, y, w, h) within the image, at least a quarter of it long."""
    w, h = (int(generator.integers(edge // 4, edge // 2))
            for edge in (width, height))
    return (int(generator.integers(0, width - w)),
            int(generator.integers(0, height - h)), w, h)


def _write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def _splits(seed=0):
    generator = np.random.default_rng(seed)
    for split, images in (('train', TRAINED), ('val', TESTED)):
        yield split, images, generator


def cityscapes(folder, height=128, width=256):
    """leftImg8bit/SPLIT/CITY/*.png, and maps of labels in gtFine/."""
    for split, images, generator in _splits():
        for i in range(images):
            image = _image(generator, height, width)
            labels = np.zeros((height, width), np.uint8)
            labels[:8] = 255
            for label in (1, 2, 13):
                x, y, w, h = _rectangle(generator, height, width)
                labels[y:y + h, x:x + w] = label
                image[y:y + h, x:x + w] = 15 * label
            name = f'city/city_{i:06}'
            _write(folder / 'leftImg8bit' / split / f'{name}_leftImg8bit.png',
                   image)
            _write(folder / 'gtFine' / split
                   / f'{name}_gtFine_labelTrainIds.png', labels)


def coco(folder, height=96, width=128):
    """SPLIT2017/*.jpg, and two persons an image in annotations/, by boxes,
    outlines and 17 keypoints."""
    for split, images, generator in _splits():
        annotations = []
        for i in range(images):
            image = _image(generator, height, width)
            for _ in range(2):
                x, y, w, h = _rectangle(generator, height, width)
                image[y:y + h, x:x + w] = (40, 160, 220)
                points = generator.uniform((x, y), (x + w, y + h), (17, 2))
                annotations.append(dict(
                    id=len(annotations) + 1, image_id=i, category_id=1,
                    iscrowd=0, bbox=[x, y, w, h], area=w * h,
                    segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]],
                    keypoints=np.c_[points, np.full(17, 2)].ravel().tolist(),
                    num_keypoints=17))
            _write(folder / f'{split}2017' / f'{i:012}.jpg', image)
        document = dict(
            images=[dict(id=i, file_name=f'{i:012}.jpg', height=height,
                         width=width) for i in range(images)],
            annotations=annotations,
            categories=[dict(id=1, name='person')])
        for kind in ('person_keypoints', 'instances'):
            if kind == 'instances':  # a detector may find any class
                document['categories'] = [
                    dict(id=i + 1, name=name) for i, name in enumerate(
                        CocoDataset.METAINFO['classes'])]
            path = folder / 'annotations' / f'{kind}_{split}2017.json'
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(document))


def dota(folder, edge=128):
    """SPLIT/images/*.png, and two rotated planes an image in annfiles/."""
    for split, images, generator in _splits():
        for i in range(images):
            image = _image(generator, edge, edge)
            lines = []
            for _ in range(2):
                center = generator.uniform(edge * 0.3, edge * 0.7, 2)
                size = generator.uniform(edge * 0.2, edge * 0.4, 2)
                box = cv2.boxPoints((tuple(map(float, center)),
                                     tuple(map(float, size)),
                                     float(generator.uniform(0, 90))))
                cv2.fillPoly(image, [box.astype(np.int32)], (20, 200, 90))
                lines.append(' '.join(f'{v:.1f}' for v in box.ravel())
                             + ' plane 0\n')
            _write(folder / split / 'images' / f'P{i:04}.png', image)
            path = folder / split / 'annfiles' / f'P{i:04}.txt'
            path.parent.mkdir(exist_ok=True)
            path.write_text(''.join(lines))


def kinetics(folder, height=96, width=128, frames=12):
    """SPLIT/NUMBER/img_*.jpg, the frames of a clip, and lists of the clips
    with their numbers of frames and labels."""
    for split, clips, generator in _splits():
        lines = []
        for i in range(clips):
            image = _image(generator, height, width)
            for t in range(frames):
                _write(folder / split / f'{i}' / f'img_{t + 1:05}.jpg',
                       np.roll(image, 3 * t, axis=i % 2))
            lines.append(f'{i} {frames} {i % 2}\n')
        (folder / f'{split}.txt').write_text(''.join(lines))


def image_folder(folder, height=96, width=128):
    """SPLIT/CLASS/*.png"""
    for split, images, generator in _splits():
        for i in range(images):
            _write(folder / split / f'n{i % 2}' / f'{i}.png',
                   _image(generator, height, width))
