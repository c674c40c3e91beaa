"""One picture at several sizes, drawn side by side."""
from typing import Any, Sequence

from ..utils.checkpoint import save_plot

PANEL = 2.6  # inches, of a picture's width


def named(label: int, classes: Sequence[str]) -> str:
    """A class by its name, or, unknown, its number."""
    return classes[label] if label < len(classes) else f'class {label}'


def draw(found: dict, title: str, path: str) -> None:
    """Draw what :func:`show_sizes` returns into a PNG, the smallest size on
    the left; every picture as large, so that its pixels are seen."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    views, stop = found['views'], found['stop']
    height, width = views[-1].shape or views[-1].pixels.shape[:2]
    figure, axes = plt.subplots(
        1, len(views), squeeze=False, layout='constrained',
        figsize=(PANEL * len(views), PANEL * height / width + 0.9))
    for index, (view, axis) in enumerate(zip(views, axes[0])):
        if view.scores is not None:
            axis.imshow(view.pixels / 255, cmap='gray', vmin=0, vmax=1,
                        interpolation='nearest')
            label = int(view.scores.argmax())
            text = (f'{named(label, found["classes"])} '
                    f'{float(view.scores[label]):.2f}')
        else:
            text = _draw_boxes(axis, view, found['classes'])
        axis.set_title(f'{view.size} pixels\n{text}', fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
        if stop is not None:
            _mark(axis, index, stop)
    if found['truth'] is not None:
        title += f': {named(found["truth"], found["classes"])}'
    figure.suptitle(f'picture {title}', fontsize=10)
    save_plot(figure, path, 100)


def _draw_boxes(axis: Any, view: Any, classes: Sequence[str]) -> str:
    """The picture and its boxes; returns how many there are."""
    from matplotlib.patches import Rectangle
    height, width = view.shape[:2]
    # mmdet's boxes are in pixels of the original.
    axis.imshow(view.pixels / 255, cmap='gray', vmin=0, vmax=1,
                interpolation='nearest', extent=(0, width, height, 0))
    boxes = view.boxes
    for box, label, score in zip(boxes.bboxes.tolist(),
                                 boxes.labels.tolist(),
                                 boxes.scores.tolist()):
        color = f'C{label % 10}'
        axis.add_patch(Rectangle(box[:2], box[2] - box[0], box[3] - box[1],
                                 fill=False, color=color, linewidth=1.5))
        axis.text(box[0], box[1], f'{named(label, classes)} {score:.2f}',
                  fontsize=6, color='white', clip_on=True,
                  verticalalignment='bottom', bbox=dict(
                      facecolor=color, linewidth=0, pad=0.5, alpha=0.8))
    return f'{len(boxes)} boxes' if len(boxes) != 1 else '1 box'


def _mark(axis: Any, index: int, stop: int) -> None:
    """Frame the size at which a cascade stops, and name what the others do."""
    text = ('unsure, goes up' if index < stop
            else 'decided here' if index == stop else 'not run')
    color, width = ('C2', 4) if index == stop else ('0.4', 1)
    axis.set_xlabel(text, fontsize=10, color=color)
    for spine in axis.spines.values():
        spine.set(color=color, linewidth=width)
