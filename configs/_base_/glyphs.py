# Letters and digits of free fonts (tools/make_glyphs.py), in the files of MNIST, and
# a thin ResNet-18 at ImageNet's strides for them: an experiment of minutes on a CPU.
# Fonts of the test are in no other set; those of the validation are at the end of
# MNIST's training file, and held out too.
_base_ = ['mmpretrain::_base_/models/resnet18.py',
          'mmpretrain::_base_/default_runtime.py']
size = 96  # pixels; the resize below is what tools/test.py rewrites
model = dict(
    backbone=dict(in_channels=1, stem_channels=16, base_channels=16),
    head=dict(num_classes=36, in_channels=128))
data_preprocessor = dict(mean=[127.5], std=[50.0], to_rgb=False)
resize = dict(type='Resize', scale=size, backend='pillow')
data = dict(type='MNIST', data_root='data/glyphs', download=False,
            metainfo=dict(classes=tuple('ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789')))
train_dataloader = dict(
    batch_size=128, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(**data, indices=24000, pipeline=[dict(type='PackInputs')]))
val_dataloader = dict(
    batch_size=250, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**data, indices=-3000, pipeline=[resize, dict(type='PackInputs')]))
test_dataloader = dict(
    batch_size=250, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**data, split='test', test_mode=True,
                 pipeline=[resize, dict(type='PackInputs')]))
val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1, 5))
optim_wrapper = dict(optimizer=dict(
    type='AdamW', lr=1e-2, weight_decay=0.05, fused=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, end=100),
    dict(type='CosineAnnealingLR', T_max=6, convert_to_iter_based=True)]
train_cfg = dict(by_epoch=True, max_epochs=6, val_interval=6)
val_cfg = dict()
test_cfg = dict()
randomness = dict(seed=0)
custom_imports = dict(imports=['sct_mm'], allow_failed_imports=False)
custom_hooks = [dict(type='EpochSeedHook'), dict(type='ChannelsLastHook')]
