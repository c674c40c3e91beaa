# To compare with: SCT without private normalization.
_base_ = '../_base_/fashion-det.py'
custom_hooks = [*_base_.custom_hooks, dict(type='SCTLossHook', scales=(128, 96, 64))]
val_cfg = dict(type='ScalesValLoop', sizes=(128, 96, 64))
