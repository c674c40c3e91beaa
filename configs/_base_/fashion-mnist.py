# Fashion-MNIST and a thin ResNet-18 for it: an experiment of minutes on a CPU.
# Shortcuts that average (avg_down) see every pixel, at sizes of any remainder.
_base_ = ['mmpretrain::_base_/models/resnet18_cifar.py',
          'mmpretrain::_base_/default_runtime.py']
size = 28  # pixels; the resize below is what tools/test.py rewrites
model = dict(
    backbone=dict(in_channels=1, stem_channels=16, base_channels=16,
                  strides=(2, 2, 2, 1), avg_down=True),
    head=dict(in_channels=128))
data_preprocessor = dict(mean=[72.94], std=[90.02], to_rgb=False)
resize = dict(type='Resize', scale=size, backend='pillow')
train_dataloader = dict(
    batch_size=128, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='FashionMNIST', data_root='data/fashion-mnist', indices=40000,
                 pipeline=[dict(type='PackInputs')]))
test_dataloader = dict(
    batch_size=250, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='FashionMNIST', data_root='data/fashion-mnist', split='test',
                 test_mode=True, pipeline=[resize, dict(type='PackInputs')]))
val_dataloader = test_dataloader
val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1, 5))
optim_wrapper = dict(optimizer=dict(
    type='AdamW', lr=1e-2, weight_decay=0.05, fused=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, end=100),
    dict(type='CosineAnnealingLR', T_max=3, convert_to_iter_based=True)]
train_cfg = dict(by_epoch=True, max_epochs=3, val_interval=3)
val_cfg = dict()
test_cfg = dict()
randomness = dict(seed=0)
custom_imports = dict(imports=['sct_mm'], allow_failed_imports=False)
custom_hooks = [dict(type='EpochSeedHook'), dict(type='ChannelsLastHook')]
