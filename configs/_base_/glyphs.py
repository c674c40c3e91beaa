# Classification of letters and digits by a thin ResNet-18 with ImageNet's strides:
# minutes on a CPU. tools/dataset_converters/glyphs.py draws them from free fonts, into
# files as MNIST's. The fonts of the test set are in no other set. The validation set is
# the end of the training file; its fonts are not trained on.
_base_ = ['mmpretrain::_base_/models/resnet18.py', './minutes.py']
size = 96  # pixels; tools/test.py changes the resize below
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
train_cfg = dict(max_epochs=6, val_interval=6)
param_scheduler = [_base_.param_scheduler[0], {**_base_.param_scheduler[1], 'T_max': 6}]
