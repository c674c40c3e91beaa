"""The experiments behind the tables of docs/results.md: which networks each
compares, how they are trained, and at which sizes they are tested."""
from typing import NamedTuple, Optional


class Arm(NamedTuple):
    """One network of an experiment, and how it is made.

    It is trained by its config, or, with ``adapt`` or ``calibrate``, made from
    the network of ``start``. An arm with ``start`` and neither of the two is
    trained from the weights of that network's backbone.
    """
    config: str  # name of a file in configs/ here or of the repository
    # {size: how often it sees each training image}, the training of `start`
    # included where the arm adapts or calibrates that network
    seen: dict[int, float]
    epochs: int | None = None  # None: those of the config
    options: tuple[str, ...] = ()  # for --cfg-options
    start: Optional['Arm'] = None
    adapt: tuple[str, ...] = ()  # options of tools/adapt.py
    calibrate: tuple[int, ...] = ()  # sizes for tools/calibrate.py


class Each(NamedTuple):
    """One single-scale network per size, each tested at its own size only."""
    arms: dict[int, Arm]


class Experiment(NamedTuple):
    """Networks that are compared; each is tested at all ``sizes``."""
    arms: dict[str, Arm | Each]
    sizes: tuple[int, ...]
    metrics: dict[str, str]  # {name in tools/test.py: name in the figure}
    unit: float = 1  # value of a metric that is shown as 1 %
    gpus: int = 1
    hours: dict[int, float] = {}  # {size: GPU hours of a plain epoch}
    # If set, arms are named 'SCHEDULE, N epochs', and the figure shows the
    # metric over their compute, in one panel for each of these sizes.
    panels: tuple[int, ...] = ()


def lasting(arm: Arm, own: int, epochs: int) -> Arm:
    """``arm``, whose config trains for ``own`` epochs, with another number
    of ``epochs``."""
    return arm if epochs == own else arm._replace(
        epochs=epochs, seen={size: times * epochs / own
                             for size, times in arm.seen.items()})


def calibrated(arm: Arm, config: str, sizes: tuple[int, ...]) -> Arm:
    """``arm`` with its statistics re-estimated at each of ``sizes``.

    Args:
        config: of a network with SSBN, which can hold them.
    """
    return Arm(config, arm.seen, start=arm, calibrate=sizes)


DEMO = 'sct_resnet18_1xb128_fashion-mnist'
DETECTOR = 'sct_retinanet_r18_fpn_1xb8_fashion-det'


def divided(epochs: int) -> dict[int, float]:
    """``seen`` of the demo, which divides each batch over the scales in
    proportion to their loss weights."""
    return {28: 0.34 * epochs, 21: 0.26 * epochs, 14: 0.4 * epochs}


SINGLE = {scale: Arm(f'resnet18_1xb128_fashion-mnist-{scale}px', {scale: 3})
         for scale in (28, 24, 21, 18, 16, 14)}
SSBN = Arm(DEMO, divided(8))
# Normalization parameters alone.
ROWS = '--rank 0 --lr 0.08'
# tools/adapt.py trains for two epochs. The base scale runs forward only, and
# the smaller scales need no gradients of the shared weights: they cost a third
# and two thirds of a training pass.
ADAPTED = Arm(SINGLE[28].config, {28: 3 + 2 / 3, 21: 4 / 3, 14: 4 / 3},
              start=SINGLE[28], adapt=tuple(
                  f'--scales 28 21 14 --sizes 26 24 22 20 18 16 {ROWS}'
                  .split()))
# With a private change of the weights, whose gradients take a whole pass, and
# which learns sizes between the scales.
FLAT = Arm(SINGLE[28].config, {
    28: 3 + 1 / 3, 27: 0.11, 26: 0.28, 25: 0.11, 24: 0.5, 23: 0.25, 22: 0.25,
    21: 0.5, 20: 0.25, 19: 0.25, 18: 0.5, 17: 0.5, 16: 0.5, 15: 0.5, 14: 0.5},
    start=SINGLE[28], adapt=tuple(
        '--scales 28 24 21 18 16 14 --sizes 26 22 20 --epochs 1 --between 0.5'
        .split()))
RANKED = Arm(SINGLE[28].config, {28: 3 + 4 / 3, 21: 4, 14: 4},
             start=SINGLE[28],
             adapt=tuple('--scales 28 21 14 --epochs 4 --lr 0.05'.split()))
# About the compute of 5 epochs at 28.
LONGER = {size: lasting(SINGLE[size], 3, epochs) for size, epochs in (
    (28, 5), (24, 8), (21, 8), (18, 9), (16, 18), (14, 19))}
# Passes at odd sizes are counted at their neighbours, which every test has.
ANY_SIZE = Arm('sct-any-size_resnet18_1xb128_fashion-mnist', {
    28: 1.77, 26: 0.21, 24: 0.62, 22: 0.25, 21: 0.64, 20: 0.37, 18: 1.33,
    16: 2.14, 14: 2.65})
ANY_LONG = Arm('sct-any-size_resnet18_1xb128-40e_fashion-mnist', {
    size: times * 4 for size, times in ANY_SIZE.seen.items()})
# Of the lengths that were tried, 28, 21 and 14 take the best by their test.
SINGLES = Each({28: lasting(SINGLE[28], 3, 10), **{
    size: LONGER[size] for size in (24, 21, 18, 16, 14)}})
EVERY_SCALE = ('custom_hooks.2.partition=False',
               'custom_hooks.2.loss_weights=None')
EVERY = Arm(DEMO, {28: 5, 21: 5, 14: 5}, 5, EVERY_SCALE)
EVERY_BETWEEN = {28: 5, 26: 0.41, 24: 0.95, 22: 0.39, 21: 3.25, 20: 0.1,
                 18: 0.78, 16: 0.77, 14: 3.35}
SHARED = Arm('sct-shared-bn_resnet18_1xb128_fashion-mnist', divided(8))
MIXSIZE = Arm('sct-mixsize-shared-bn_resnet18_1xb128_fashion-mnist',
              {size: 1 for size in range(28, 12, -2)})
ANY_BASELINE = 'sct-any-size-{}_resnet18_1xb128_fashion-mnist'
ANY_SHARED = ANY_SIZE._replace(config=ANY_BASELINE.format('shared-bn'))
GLYPHS = Arm('sct_resnet18_1xb128_glyphs', {
    96: 2.79, 84: 0.45, 72: 1.26, 60: 0.88, 48: 2.08, 42: 2.99, 36: 5.56})
GLYPHS_SHARED = GLYPHS._replace(
    config='sct-shared-bn_resnet18_1xb128_glyphs')
GLYPHS_SINGLE = 'resnet18_1xb128_glyphs-{}px'
GLYPHS_R50 = GLYPHS._replace(config='sct_resnet50_1xb128_glyphs')
GLYPHS_R50_SINGLE = 'resnet50_1xb128_glyphs-{}px'
GLYPHS_ADAPTED = Arm(
    GLYPHS_SINGLE.format(96), {96: 6 + 2 / 3, 72: 4 / 3, 48: 4 / 3, 36: 4 / 3},
    start=Arm(GLYPHS_SINGLE.format(96), {96: 6}), adapt=tuple(
        f'--scales 96 72 48 36 --sizes 84 60 42 {ROWS}'.split()))
# Rank 8, as RANKED.
GLYPHS_RANKED = GLYPHS_ADAPTED._replace(
    seen={96: 6 + 2 / 3, 72: 2, 48: 2, 36: 2},
    adapt=tuple('--scales 96 72 48 36'.split()))
GLYPHS_BASELINE = 'sct-{}_resnet18_1xb128_glyphs'
GLYPHS_MIXSIZE = Arm(GLYPHS_BASELINE.format('mixsize-shared-bn'), {
    size: 13 / 7 for size in (96, 84, 72, 60, 48, 42, 36)})
GLYPHS_EVERY_SCALE = (
    'custom_hooks.2.recipe=paper', 'custom_hooks.2.shared_affine=True')
GLYPHS_EVERY = Arm(GLYPHS.config, {96: 3, 72: 3, 48: 3, 36: 3}, 3,
                   GLYPHS_EVERY_SCALE)
GLYPHS_SIZES = (96, 84, 72, 60, 48, 42, 36)
DET_SEEN = {128: 3, 96: 3, 64: 3}
DET_DRAWN = {128: 3, 112: 1.5, 96: 1.5, 80: 1.5, 64: 1.5}
DET_FIRST = {128: 2.17, 112: 1.04, 96: 1.44, 80: 2.38, 64: 4.97}
DET_EVERY_SCALE = ('custom_hooks.2.scales_per_step=None',
                   'custom_hooks.2.between=0.0')
DET_BETWEEN, DET_PRIVATE, DET_SHARED = (
    f'sct-between{norm}_retinanet_r18_fpn_1xb8_fashion-det'
    for norm in ('', '-private-affine', '-shared-bn'))
DET_ALL = Arm(DET_PRIVATE, DET_SEEN, 3, DET_EVERY_SCALE)
DET_SINGLE = Arm('retinanet_r18_fpn_1xb8_fashion-det-128px', {128: 3})
DET_SCT = Arm(DETECTOR, DET_FIRST)
DET_SCT_SHARED = DET_SCT._replace(
    config='sct-shared-bn_retinanet_r18_fpn_1xb8_fashion-det')
DET_RANDOM = Arm('random-resize_retinanet_r18_fpn_1xb8_fashion-det',
                 {128: 5.8})  # a batch is padded to its largest image
IN1K_SIZES = (224, 192, 160, 128)
IN1K_TESTED = (224, 208, 192, 176, 160, 144, 128)
IN1K_DRAWN = {224: 33.85, 208: 8.64, 192: 16.15, 176: 12.44, 160: 23.11,
              144: 26.88, 128: 49.93}
# A plain step on an H200: docs/benchmark-h200.json, in between the mean.
IN1K_MS = {224: 23.83, 208: 22.14, 192: 20.45, 176: 18.59, 160: 16.72,
           144: 16.07, 128: 15.43}
IN1K_SINGLE = {
    name: Arm(f'resnet50{name}_8xb32_in1k-224px', {224: 100})
    for name in ('', '-modern')}
IN1K_SHARED = Arm('sct-shared-bn_resnet50_8xb32_in1k', IN1K_DRAWN)
# A classifier from which the detector starts must have its shortcuts.
DET_SHORTCUTS = ('model.backbone.avg_down=False', )
TOP1 = {'accuracy/top1': 'top-1 on Fashion-MNIST (%)'}
MAP = {'coco/bbox_mAP': 'mAP on composed Fashion-MNIST (%)',
       'coco/bbox_mAP_s': 'AP of objects up to 32 x 32 pixels (%)',
       'coco/bbox_mAP_m': 'AP of larger objects (%)'}
DET_SIZES = (128, 112, 96, 80, 64)
ANY = tuple(range(28, 13, -1))
EVEN = (28, 26, 24, 22, 21, 20, 18, 16, 14)


def glyphs_single(size: int, epochs: int) -> Arm:
    """A network for ``size``, with the learning rate that was best of three
    on images held out."""
    return Arm(GLYPHS_SINGLE.format(size), {size: epochs}, epochs, (
        ('optim_wrapper.optimizer.lr=0.02', ) if size == 48 else ()))


EXPERIMENTS = {
    'any-size': Experiment({
        'trained at 28 px only': SINGLE[28],
        'trained at 28 px only, adapted': ADAPTED,
        'trained at 28 px only, adapted to any size': FLAT,
        'single-scale network per size': SINGLES,
        'SCT, SSBN': ANY_SIZE,
        'SCT, SSBN, longer schedule': ANY_LONG,
    }, ANY, TOP1),
    'adapt': Experiment({
        'trained at 28 px only': SINGLE[28],
        'trained at 28 px only, adapted, rank 8, 4 epochs': RANKED,
    }, EVEN, TOP1),
    # The recipe without one of its parts.
    'ablations': Experiment({
        'SCT, SSBN': ANY_SIZE,
        'between=0': Arm(
            ANY_SIZE.config, {28: 1.75, 24: 0.78, 21: 0.97, 18: 1.37,
                              16: 1.92, 14: 3.21},
            options=('custom_hooks.2.between=0.0', )),
        'progressive=0': Arm(ANY_SIZE.config, {
            28: 3.19, 26: 0.25, 24: 0.70, 22: 0.21, 21: 0.55, 20: 0.17,
            18: 0.63, 16: 0.61, 14: 0.69}, 7,
            ('custom_hooks.2.progressive=0.0', )),
        'private statistics in the first stages only': ANY_SIZE._replace(
            config=ANY_BASELINE.format('first-stages')),
    }, ANY, TOP1),
    # Each has the compute of 4.5 to 5.1 epochs at 28. SSBN re-estimated is
    # left out: with gamma and beta shared it trains as shared BN does.
    'baselines': Experiment({
        **{f'trained at {size} px only': arm for size, arm in LONGER.items()},
        'trained at 28 px only, adapted': ADAPTED,
        'one random size per step, shared BN': MIXSIZE,
        'one random size per step, shared BN, re-estimated': calibrated(
            MIXSIZE, DEMO, EVEN),
        'SCT, shared BN': ANY_SHARED,
        'SCT, shared BN, re-estimated': calibrated(ANY_SHARED, DEMO, EVEN),
        'SCT, SSBN, private gamma and beta': ANY_SIZE._replace(
            config=ANY_BASELINE.format('private-affine')),
        'SCT, SSBN': ANY_SIZE,
    }, EVEN, TOP1),
    # Twice the compute of the baselines.
    'longer': Experiment({
        'trained at 28 px only': lasting(SINGLE[28], 3, 10),
        'trained at 21 px only': lasting(SINGLE[21], 3, 16),
        'trained at 14 px only': lasting(SINGLE[14], 3, 38),
        'SCT, SSBN': lasting(ANY_SIZE, 10, 20),
    }, EVEN, TOP1),
    # Twice as much again; networks for 21 and 14 had stopped gaining before.
    'longest': Experiment({
        'trained at 28 px only': lasting(SINGLE[28], 3, 20),
        'SCT, SSBN': ANY_LONG,
    }, EVEN, TOP1),
    # Each network for several lengths, up to the compute of 20 epochs at 28.
    'compute': Experiment({
        f'{name}, {epochs} epochs': lasting(arm, own, epochs)
        for name, arm, own, lengths in (
            *((f'trained at {size} px only', SINGLE[size], 3, lengths)
              for size, lengths in ((28, (3, 5, 10, 20)), (21, (5, 8, 16)),
                                    (14, (12, 19, 38)))),
            ('SCT, SSBN', ANY_SIZE, 10, (6, 10, 20)),
            ('SCT, SSBN', ANY_LONG, 40, (40, )),
            ('SCT, SSBN, partition', SSBN, 8, (5, 8)),
            ('SCT, shared BN, partition', SHARED, 8, (8, )),
            ('SCT, SSBN, all scales', EVERY, 5, (3, )))
        for epochs in lengths
    }, EVEN, TOP1, panels=(28, 21, 14)),
    'distill': Experiment({
        'SCT, SSBN, all scales': EVERY,
        'SCT, SSBN, distill=larger': EVERY._replace(options=(
            *EVERY_SCALE, 'custom_hooks.2.distill=larger')),
        'SCT, SSBN, between=0.35, distill=larger': EVERY._replace(
            seen=EVERY_BETWEEN, options=(
                *EVERY_SCALE, 'custom_hooks.2.between=0.35',
                'custom_hooks.2.distill=larger')),
        'SCT, SSBN, distill=ensemble': EVERY._replace(options=(
            *EVERY_SCALE, 'custom_hooks.2.distill=ensemble',
            'custom_hooks.2.backward=joint')),
    }, EVEN, TOP1),
    # Each sees the pixels of 6 epochs at 96.
    'glyphs': Experiment({
        'trained at 96 px only': Arm(GLYPHS_SINGLE.format(96), {96: 6}),
        'trained at 96 px only, longer schedule': glyphs_single(96, 7),
        **{f'trained at {size} px only': glyphs_single(size, epochs)
           for size, epochs in ((72, 11), (48, 24), (36, 42))},
        'trained at 96 px only, adapted': GLYPHS_ADAPTED,
        'SCT, shared BN': GLYPHS_SHARED,
        'SCT, shared BN, re-estimated': calibrated(
            GLYPHS_SHARED, GLYPHS.config, GLYPHS_SIZES),
        'SCT, SSBN': GLYPHS,
    }, GLYPHS_SIZES, {'accuracy/top1': 'top-1 on letters and digits (%)'}),
    # Twice the compute of SCT.
    'glyphs-longer': Experiment({
        **{f'trained at {size} px only': glyphs_single(size, epochs)
           for size, epochs in ((96, 14), (72, 22), (48, 48), (36, 60))},
        'SCT, SSBN': lasting(GLYPHS, 16, 32),
    }, GLYPHS_SIZES, {'accuracy/top1': 'top-1 on letters and digits (%)'}),
    'glyphs-adapt': Experiment({
        'trained at 96 px only': GLYPHS_ADAPTED.start,
        'trained at 96 px only, adapted, rank 8': GLYPHS_RANKED,
        'trained at 96 px only, adapted, rank 16': GLYPHS_RANKED._replace(
            adapt=(*GLYPHS_RANKED.adapt, '--rank', '16', '--lr', '0.1')),
    }, GLYPHS_SIZES, {'accuracy/top1': 'top-1 on letters and digits (%)'}),
    # The pixels of 6 epochs at 96.
    'glyphs-baselines': Experiment({
        'one random size per step, shared BN': GLYPHS_MIXSIZE,
        'one random size per step, shared BN, re-estimated': calibrated(
            GLYPHS_MIXSIZE, GLYPHS.config, GLYPHS_SIZES),
        'private statistics in the first stages only': GLYPHS._replace(
            config=GLYPHS_BASELINE.format('first-stages')),
        'SCT, SSBN, private gamma and beta': GLYPHS._replace(
            config=GLYPHS_BASELINE.format('private-affine')),
        'SCT, SSBN, between=0': lasting(GLYPHS._replace(
            seen={96: 2.67, 72: 1.57, 48: 3.2, 36: 8.56},
            options=('custom_hooks.2.between=0.0', )), 16, 17),
        'SCT, SSBN': GLYPHS,
    }, GLYPHS_SIZES, {'accuracy/top1': 'top-1 on letters and digits (%)'}),
    'glyphs-distill': Experiment({
        'SCT, SSBN, all scales': GLYPHS_EVERY,
        'SCT, SSBN, distill=larger': GLYPHS_EVERY._replace(
            options=(*GLYPHS_EVERY_SCALE, 'custom_hooks.2.distill=larger')),
    }, GLYPHS_SIZES, {'accuracy/top1': 'top-1 on letters and digits (%)'}),
    # The same with a ResNet-50 of full width; it needs a GPU.
    'glyphs-resnet50': Experiment({
        'trained at 96 px only': Arm(GLYPHS_R50_SINGLE.format(96), {96: 6}),
        **{f'trained at {size} px only': Arm(
            GLYPHS_R50_SINGLE.format(size), {size: epochs}, epochs)
           for size, epochs in ((72, 11), (48, 24), (36, 42))},
        'SCT, SSBN': GLYPHS_R50,
    }, GLYPHS_SIZES, {'accuracy/top1': 'top-1 on letters and digits (%)'}),
    'detection': Experiment({
        'RandomChoiceResize, shared BN': DET_RANDOM,
        'trained at 128 px only': DET_SINGLE,
        'trained at 128 px only, longer schedule': lasting(DET_SINGLE, 3, 6),
        'between=0.5, shared BN': Arm(DET_SHARED, DET_DRAWN),
        'between=0.5, SSBN': Arm(DET_BETWEEN, DET_DRAWN),
        'between=0.5, SSBN, private gamma and beta': Arm(
            DET_PRIVATE, DET_DRAWN),
        'SCT, shared BN': DET_SCT_SHARED,
        'SCT, SSBN': DET_SCT,
    }, DET_SIZES, MAP, 0.01),
    'detection-schedules': Experiment({
        'one scale per step, between=0.5': Arm(DET_PRIVATE, DET_DRAWN),
        'one scale per step': Arm(DET_PRIVATE, DET_SEEN, options=(
            'custom_hooks.2.between=0.0', )),
        'all scales': DET_ALL,
        'all scales, shared BN': Arm(DET_SHARED, DET_SEEN, 3,
                                     DET_EVERY_SCALE),
    }, DET_SIZES, MAP, 0.01),
    'detection-baselines': Experiment({
        'RandomChoiceResize, re-estimated': calibrated(
            DET_RANDOM, DET_BETWEEN, DET_SIZES),
        'between=0.5, shared BN, re-estimated': calibrated(
            Arm(DET_SHARED, DET_DRAWN), DET_BETWEEN, DET_SIZES),
        'between=0.5, SSBN, re-estimated': calibrated(
            Arm(DET_BETWEEN, DET_DRAWN), DET_BETWEEN, DET_SIZES),
        'SCT, shared BN, re-estimated': calibrated(
            DET_SCT_SHARED, DETECTOR, DET_SIZES),
        'SCT, SSBN': DET_SCT,
        'trained at 128 px only, adapted': Arm(
            DET_SINGLE.config, {128: 3 + 2 / 3, 96: 4 / 3, 64: 4 / 3},
            start=DET_SINGLE,
            adapt=tuple(
                f'--scales 128 96 64 --sizes 112 80 {ROWS}'.split())),
    }, DET_SIZES, MAP, 0.01),
    # About the compute of SCT for each.
    'detection-singles': Experiment({
        f'trained at {size} px only': Arm(DET_SINGLE.config.replace(
            '128', str(size)), {size: epochs}, epochs)
        for size, epochs in ((96, 10), (64, 23))}, DET_SIZES, MAP, 0.01),
    'detection-adapt': Experiment({
        'trained at 128 px only': DET_SINGLE,
        'trained at 128 px only, adapted, rank 8': Arm(
            DET_SINGLE.config, {128: 3 + 2 / 3, 96: 2, 64: 2},
            start=DET_SINGLE, adapt=tuple('--scales 128 96 64'.split())),
    }, DET_SIZES, MAP, 0.01),
    'imagenet': Experiment({
        **{f'trained at {scale} px only': Arm(
            f'resnet50_8xb32_in1k-{scale}px', {scale: 100})
           for scale in IN1K_SIZES},
        'trained at 224 px only, modern': IN1K_SINGLE['-modern'],
        **{f'trained at 224 px only{name.replace("-", ", ")}, adapted': Arm(
            arm.config, {224: 100 + 2 / 3, 192: 4 / 3, 160: 4 / 3,
                         128: 4 / 3}, start=arm, adapt=tuple(
                '--scales 224 192 160 128'.split()))
           for name, arm in IN1K_SINGLE.items()},
        'SCT, shared BN': IN1K_SHARED,
        'SCT, shared BN, re-estimated': calibrated(
            IN1K_SHARED, 'sct_resnet50_8xb32_in1k', IN1K_TESTED),
        'SCT, SSBN, all scales': Arm('sct-paper_resnet50_8xb32_in1k', {
            size: 100 for size in IN1K_SIZES}),
        'SCT, SSBN': Arm('sct_resnet50_8xb32_in1k', IN1K_DRAWN),
        'SCT, SSBN, modern': Arm('sct-modern_resnet50_8xb32_in1k',
                                 IN1K_DRAWN),
    }, IN1K_TESTED, {'accuracy/top1': 'top-1 on ImageNet (%)'}, gpus=8,
        hours={size: 1281167 / 128 * ms / 3.6e6
               for size, ms in IN1K_MS.items()}),
    'transfer': Experiment({
        'from random weights': DET_ALL,
        'from a network trained at 28 px only': DET_ALL._replace(
            start=SINGLE[28]._replace(options=DET_SHORTCUTS)),
        'from a network trained with SCT, SSBN': DET_ALL._replace(
            start=SSBN._replace(options=DET_SHORTCUTS)),
    }, DET_SIZES, MAP, 0.01),
}
