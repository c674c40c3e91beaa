# To compare with: private statistics, but gamma and beta shared by all scales.
_base_ = '../sct_resnet18_1xb128_fashion-mnist.py'
custom_hooks = [*_base_.custom_hooks[:-1], {**_base_.custom_hooks[-1], 'backward': 'joint'},
                dict(type='SharedAffineHook')]
