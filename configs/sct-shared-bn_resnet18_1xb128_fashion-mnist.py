# To compare with: SCT without private normalization.
_base_ = './_base_/fashion-mnist.py'
custom_hooks = [*_base_.custom_hooks, dict(type='SCTLossHook', scales=(28, 21, 14))]
