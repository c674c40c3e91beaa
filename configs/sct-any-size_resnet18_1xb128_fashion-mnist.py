# For tests at any size from 14 to 28 pixels: five rows, which are mixed in between,
# and a third of the steps train there. 16 pixels have a row since maps of 16, 8, 4
# and 2 differ from those of 14 and 18. The cost is that of the config below.
_base_ = './sct_resnet18_1xb128_fashion-mnist.py'
model = dict(backbone=dict(norm_cfg=dict(scales=(28, 24, 21, 16, 14))))
custom_hooks = [*_base_.custom_hooks[:-1], dict(
    type='SCTLossHook', partition=True, between=0.35,
    loss_weights=(0.26, 0.15, 0.16, 0.15, 0.28))]
