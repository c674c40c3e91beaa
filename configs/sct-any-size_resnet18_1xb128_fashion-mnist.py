# For tests at any size from 14 to 28 pixels: six rows, mixed in between. Rows stand
# where the sizes of the maps change: those of 24, 18 and 16 are halved otherwise than
# their neighbours'. The whole batch is at one scale a step, in 35 % of the steps at a
# size between two; small ones more often in the first 65 % of them. Statistics are
# private, gamma and beta shared. 10 epochs cost what 5 at 28 do.
_base_ = './sct_resnet18_1xb128_fashion-mnist.py'
model = dict(backbone=dict(norm_cfg=dict(scales=(28, 24, 21, 18, 16, 14))))
custom_hooks = [
    *_base_.custom_hooks[:-1],
    dict(type='SCTLossHook', scales_per_step=1, between=0.35, progressive=0.65,
         loss_weights=(0.45, 0.13, 0.12, 0.1, 0.08, 0.12), backward='joint'),
    dict(type='SharedAffineHook')]
train_cfg = dict(max_epochs=10, val_interval=10)
param_scheduler = [_base_.param_scheduler[0], {**_base_.param_scheduler[1], 'T_max': 10}]
