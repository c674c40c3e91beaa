_base_ = './_base_/fashion-mnist.py'
model = dict(backbone=dict(norm_cfg=dict(type='SSBN', scales=(28, 21, 14))))
custom_hooks = [*_base_.custom_hooks, dict(type='SCTLossHook')]
