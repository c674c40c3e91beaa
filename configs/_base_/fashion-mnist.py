# Classification of Fashion-MNIST by a thin ResNet-18: minutes on a CPU.
# Averaging shortcuts (avg_down) use every pixel, also of sizes that strides do not divide.
_base_ = ['mmpretrain::_base_/models/resnet18_cifar.py', './minutes.py']
size = 28  # pixels; tools/test.py changes the resize below
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
