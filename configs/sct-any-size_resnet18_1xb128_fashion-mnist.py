# For tests at any size from 14 to 28 pixels: six rows, mixed in between, where a
# third of the steps train. Rows stand where the sizes of the maps change: those of
# 24, 18 and 16 are halved otherwise than their neighbours'.
_base_ = './sct_resnet18_1xb128_fashion-mnist.py'
model = dict(backbone=dict(norm_cfg=dict(scales=(28, 24, 21, 18, 16, 14))))
custom_hooks = [*_base_.custom_hooks[:-1], dict(
    type='SCTLossHook', partition=True, between=0.35,
    loss_weights=(0.24, 0.13, 0.13, 0.12, 0.12, 0.26))]
