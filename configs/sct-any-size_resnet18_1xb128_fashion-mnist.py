# For tests at any size from 14 to 28 px: six scales, interpolated between. There are scales
# where the sizes of feature maps change: those of 24, 18 and 16 px are rounded otherwise
# than their neighbours'. Each step trains the whole batch at one scale, in 35 % of the steps
# at a size between two; small ones more often in the first 65 %. Statistics are private,
# gamma and beta shared. 10 epochs cost what 5 at 28 px cost.
_base_ = './sct_resnet18_1xb128_fashion-mnist.py'
model = dict(backbone=dict(norm_cfg=dict(scales=(28, 24, 21, 18, 16, 14))))
custom_hooks = [
    *_base_.custom_hooks[:-1], dict(type='SCTLossHook', recipe='any-size')]
train_cfg = dict(max_epochs=10, val_interval=10)
param_scheduler = [_base_.param_scheduler[0], {**_base_.param_scheduler[1], 'T_max': 10}]
